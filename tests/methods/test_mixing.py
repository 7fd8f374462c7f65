"""Mixup, weighted examples, views and features: closed forms and transcriptions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from method_cases import COUNTS, log_softmax, make_batch, make_setting, same_draws

from landscape.data import Batches, load_dataset
from landscape.data.augmentation import TRANSFORMS
from landscape.data.mixing import draw_shares
from landscape.errors import LandscapeError
from landscape.losses import class_balanced_weights
from landscape.models import MODELS, build_model, find_head
from landscape.randomness import stream
from landscape.training.methods import build_method
from landscape.training.methods.auxiliary import features_and_logits, num_features
from landscape.training.methods.examples import draw_weighted_examples


@pytest.mark.parametrize("reweight", ["none", "cb"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_mixup_is_the_weighted_mean_for_each_set_of_labels(reweight, seed):
    setting, batch = make_setting(reweight=reweight, mixup=1.0), make_batch(seed=seed)
    closures = build_method("plain", setting).closures(batch)
    generator = same_draws(batch)
    share = draw_shares(1.0, 1, generator).float().item()  # shares are single precision
    partners = torch.randperm(12, generator=generator)
    mixed = share * batch.views[0] + (1 - share) * batch.views[0][partners]
    logs = log_softmax(setting.model(mixed))
    weights = class_balanced_weights(COUNTS).numpy() if reweight == "cb" else np.ones(3)
    expected = 0.0
    for part, labels in ((share, batch.labels), (1 - share, batch.labels[partners])):
        numerator = sum(-weights[y] * logs[i, y] for i, y in enumerate(labels.tolist()))
        expected += part * numerator / sum(weights[y] for y in labels.tolist())
    assert closures.descent().mean().item() == pytest.approx(expected, rel=1e-12)
    assert torch.equal(closures.labels, batch.labels if share >= 0.5 else batch.labels[partners])
    own = build_method("plain", setting, mixed_labels="own").closures(make_batch(seed=seed))
    assert torch.equal(own.labels, batch.labels)


def test_every_pass_of_a_step_sees_the_same_mixture():
    closures = build_method("plain", make_setting(mixup=0.5)).closures(make_batch())
    assert torch.equal(closures.descent(), closures.descent())


@pytest.mark.parametrize(("power", "shares"), [(0.0, [40 / 56, 12 / 56, 4 / 56]), (1.0, [1 / 3] * 3)])
def test_weighted_examples(power, shares):
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor(COUNTS)).repeat(100)
    counts = torch.tensor(COUNTS) * 100
    drawn = labels[draw_weighted_examples(labels, counts, power, torch.Generator().manual_seed(0))]
    for c, share in enumerate(shares):
        error = np.sqrt(share * (1 - share) / len(labels))
        assert abs((drawn == c).double().mean().item() - share) < 5 * error


def test_views_are_augmented_independently_and_the_first_is_the_usual_one():
    digits = replace(load_dataset("digits-lt"), augmentation="shift")
    batches = Batches(digits, batch_size=64, device="cpu", augment=True)
    usual = list(batches.epoch(stream(0, "a")))
    several = list(batches.views(stream(0, "a"), augmentations=(None, None, "none")))
    order = torch.randperm(453, generator=stream(0, "a"))
    for b, ((images, labels), (views, again)) in enumerate(zip(usual, several, strict=True)):
        assert torch.equal(images, views[0])
        assert torch.equal(labels, again)
        assert not torch.equal(views[0], views[1])
        stored = digits.normalise(digits.train.images[order[64 * b : 64 * (b + 1)]])
        assert torch.equal(views[2], stored)
        assert not torch.equal(views[1], stored)
    with pytest.raises(LandscapeError, match="unknown augmentation 'cutuot'"):
        list(batches.views(stream(0, "a"), augmentations=("cutuot",)))
    assert "shift" in TRANSFORMS


def test_an_order_of_examples_is_served_as_it_is():
    digits = load_dataset("digits-lt")
    batches = Batches(digits, batch_size=10, device="cpu", augment=False)
    order = torch.tensor([5, 5, 400, 3] * 6)
    served = list(batches.views(stream(0, "a"), order=order))
    assert [len(y) for _, y in served] == [10, 10, 4]
    assert torch.equal(torch.cat([y for _, y in served]), digits.train.labels[order])
    assert torch.equal(torch.cat([v[0] for v, _ in served]), digits.normalise(digits.train.images[order]))


@pytest.mark.parametrize("head", ["linear", "cosine"])
@pytest.mark.parametrize("name", [name for name in MODELS if name in ("mlp", "convnet", "resnet20")])
def test_features_are_what_enters_the_classifier(name, head):
    model = build_model(name, num_classes=3, in_channels=1, image_size=8, head=head)
    features, logits = features_and_logits(model, torch.rand(4, 1, 8, 8))
    assert features.shape == (4, num_features(model))
    assert torch.equal(find_head(model)[1](features), logits)
    assert not find_head(model)[1]._forward_hooks
