"""What the tests of the methods share: a tiny setting in float64, batches, and losses written out in NumPy."""

from __future__ import annotations

import copy

import numpy as np
import torch

from landscape.losses import Reweighting, build_loss
from landscape.models import build_model
from landscape.training import Objective
from landscape.training.methods import MiniBatch, Setting

COUNTS = (40, 12, 4)
MEAN, STD = (0.4,), (0.25,)


def make_setting(*, model="mlp", head="linear", loss="ce", reweight="none", epochs=10, mixup=0.0):
    network = build_model(model, num_classes=3, in_channels=1, image_size=4, head=head).double()
    objective = Objective(build_loss(loss, COUNTS), Reweighting(reweight, COUNTS)).double()
    return Setting(network, objective, COUNTS, epochs, mixup=mixup, mean=MEAN, std=STD)


def make_batch(size=12, *, seed=0, num_views=2, has_partners=False):
    """Return a batch of random pixels, normalised; its labels cover all classes."""
    generator = torch.Generator().manual_seed(seed)

    def views():
        pixels = torch.rand(num_views, size, 1, 4, 4, dtype=torch.float64, generator=generator)
        return tuple((pixels - MEAN[0]) / STD[0])

    def labels():
        return torch.cat([torch.arange(3), torch.randint(0, 3, (size - 3,), generator=generator)])

    partners = (views(), labels()) if has_partners else (None, None)
    return MiniBatch(views(), labels(), torch.Generator().manual_seed(seed + 100), *partners)


def same_draws(batch):
    """Return a generator in the state of the batch's."""
    return torch.Generator().manual_seed(batch.generator.initial_seed())


def log_softmax(logits):
    """Return log softmax row by row, from NumPy or a tensor."""
    logits = np.asarray(logits.detach() if isinstance(logits, torch.Tensor) else logits)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def twin(setting):
    """Return an independent copy of the setting's network."""
    return copy.deepcopy(setting.model)


def trunk(model, images):
    """Return what enters the classifier of the MLP, written out."""
    hidden = torch.relu(images.flatten(1) @ model.hidden1.weight.T + model.hidden1.bias)
    return torch.relu(hidden @ model.hidden2.weight.T + model.hidden2.bias)
