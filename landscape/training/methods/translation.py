"""Major-to-minor translation (M2m): rare classes get images translated from frequent ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from landscape.checkpoint import load_weights, read_checkpoint
from landscape.errors import LandscapeError
from landscape.losses import cross_entropy
from landscape.models import build_model
from landscape.training.evaluation import evaluation_mode
from landscape.training.methods.auxiliary import frozen_copy
from landscape.training.methods.examples import draw_weighted_examples
from landscape.training.methods.options import check_choices, check_numbers, check_whole
from landscape.training.methods.protocol import Closures, Method, MiniBatch, Setting

STARTS = ("channel", "image", "none")
BOUNDS = ("probability", "loss")
NOISE_LENGTH = 0.5  # released, in units of pixels scaled to [0, 1]


class M2m(Method):
    r"""Major-to-minor translation (M2m): images of frequent classes are turned into examples of rare ones.

    After a warm-up on the data as they are, classes are sampled evenly. An example of class k is then, with
    probability :math:`1 - n_k / n_{\max}`, replaced by a translation of an example :math:`x_0` of class :math:`k_0`
    from the same batch, drawn with probability proportional to :math:`1 - \beta^{(n_{k_0} - n_k)^+}`: T steps of

    .. math:: x \leftarrow \Pi_{[0, 1]}\Big(x - \eta\, \frac{d}{\|d\|_2}\Big), \qquad
              d = \nabla_x \big[\ell_{\text{CE}}(g(x), k) + \lambda f_{k_0}(x)\big]

    with a fixed classifier g and the network f in training, both in evaluation mode. The translation is kept with
    probability :math:`1 - \beta^{(n_{k_0} - n_k)^+}` and only if g gives k at least the probability gamma; otherwise the
    example stays as it is.

    Parameters
    ----------
    classifier
        Checkpoint of g, trained on the same data with plain cross-entropy, as published. None: g is the network itself as
        the warm-up, or the first of two stages, leaves it.
    warm
        Share of the epochs before the translation; 0.8 is the released 160 of 200.
    beta, lam, gamma
        beta, lambda and gamma; 0.999, 0.5 and 0.9 are released for CIFAR-10-LT at ratio 100.
    step_size, num_steps
        eta, in units of pixels scaled to [0, 1], and T.
    start
        Uniform noise that is added to :math:`x_0`: ``channel``, released, where a norm taken over the wrong dimension bounds
        each *channel of the whole batch* to length 0.5; ``image``, each image's noise; ``none``.
    bound
        What gamma bounds: ``probability``, released; ``loss``, the cross-entropy of g from above, as the paper writes.

    Notes
    -----
    Source: Kim et al., *M2m: Imbalanced Classification via Major-to-minor Translation*, CVPR 2020, algorithm 1, and released
    code. With a loss other than ``ce`` it is the paper's combination, such as LDAM + M2m.

    Differs from the release in:

    1. g is by default a snapshot of the network rather than a separately trained one.
    2. Every example of the batch is translated and the result used where it is wanted: no shape depends on the
       draws, so that no step waits for the device. Values are the same, the cost is that of the whole batch.
    3. ``n_max`` is the largest class; there the first.
    4. From the paper: source images come from the batch, not from the whole class (as released).
    """

    fixed: ClassVar[Mapping[str, Any]] = {"mixup": 0.0}
    counts: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        setting: Setting,
        *,
        classifier: str | None = None,
        warm: float = 0.8,
        beta: float = 0.999,
        lam: float = 0.5,
        gamma: float = 0.9,
        step_size: float = 0.1,
        num_steps: int = 10,
        start: Literal["channel", "image", "none"] = "channel",
        bound: Literal["probability", "loss"] = "probability",
    ) -> None:
        super().__init__(setting)
        self.beta, self.lam, self.gamma = beta, lam, gamma
        self.step_size, self.num_steps = step_size, num_steps
        self.start, self.bound = start, bound
        self.warm_epoch = math.ceil(round(warm * setting.epochs, 9))  # 0.7 * 10 is 7.000000000000001 or so
        self.is_own_snapshot = classifier is None
        if classifier is None and self.warm_epoch == 0 and not setting.is_trained:
            raise LandscapeError("method 'm2m' without warm-up needs a trained classifier: set classifier=CHECKPOINT")
        self.translator = frozen_copy(setting.model if classifier is None else _read_network(classifier, setting))
        self.register_buffer("counts", torch.tensor(setting.class_counts, dtype=torch.float64))
        self.register_buffer("mean", torch.tensor(setting.mean, dtype=torch.float64).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(setting.std, dtype=torch.float64).view(-1, 1, 1), persistent=False)

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Raise LandscapeError for an option out of range, or a checkpoint that is not there."""
        unit, positive = (0.0, 1.0), (0.0, math.inf)
        ranges = {"warm": unit, "beta": unit, "lam": positive, "gamma": positive, "step_size": positive}
        check_numbers("m2m", options, ranges)
        check_whole("m2m", options, {"num_steps": 0})
        check_choices("m2m", options, {"start": STARTS, "bound": BOUNDS})
        path = options["classifier"]
        if path is not None and not Path(path).expanduser().is_file():
            raise LandscapeError(f"method 'm2m': expected classifier to be a checkpoint file, got {path!r}: not there")

    @property
    def phases(self) -> tuple[int, ...]:
        """Epochs at which a step's cost changes."""
        return (0, self.warm_epoch) if 0 < self.warm_epoch < self.setting.epochs else (0,)

    def train(self, mode: bool = True) -> M2m:
        """Set the mode; the fixed classifier stays in evaluation mode."""
        super().train(mode)
        self.translator.eval()
        return self

    def start_epoch(self, epoch: int) -> None:
        """Take note of the epoch; at the end of the warm-up, of the network as it is."""
        super().start_epoch(epoch)
        if self.is_own_snapshot and epoch == self.warm_epoch:
            self.translator.load_state_dict(self.setting.model.state_dict())

    def example_order(self, labels: Tensor, generator: torch.Generator) -> Tensor | None:
        """Return class-balanced examples, drawn with replacement, after the warm-up."""
        if self.epoch < self.warm_epoch:
            return None
        return draw_weighted_examples(labels, self.counts, 1.0, generator)

    def closures(self, batch: MiniBatch) -> Closures:
        """Return the losses of the batch, after the warm-up with translated examples."""
        images, labels = batch.views[0], batch.labels
        if self.epoch >= self.warm_epoch:
            images = self.translated(images, labels, batch.generator)
        model, objective = self.setting.model, self.setting.objective
        return Closures(descent=lambda: objective(model(images), labels), labels=labels)

    def translated(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Return the images (B, C, H, W), some replaced by translations into their classes."""
        uniform = torch.rand(3, len(labels), dtype=torch.float64, generator=generator).to(images.device)
        noise = torch.rand(images.shape, generator=generator).to(images) - 0.5
        counts = self.counts[labels]
        is_wanted = uniform[0] >= counts / self.counts.max()
        acceptance = 1 - self.beta ** (counts[None, :] - counts[:, None]).clamp_min(0)  # (B, B): target, source
        cumulative = acceptance.cumsum(dim=1)
        is_wanted &= cumulative[:, -1] > 0
        threshold = (uniform[1] * cumulative[:, -1]).unsqueeze(1)
        sources = torch.searchsorted(cumulative, threshold, right=True).clamp_max(len(labels) - 1)  # (B, 1)
        is_kept = is_wanted & (uniform[2] < acceptance.gather(1, sources).squeeze(1))
        noise = noise * is_wanted.view(-1, 1, 1, 1)
        sources = sources.squeeze(1)
        results, confidence = self._translate(images[sources], noise, labels[sources], labels)
        is_kept &= confidence >= self.gamma if self.bound == "probability" else -confidence.log() <= self.gamma
        return torch.where(is_kept.view(-1, 1, 1, 1), results, images)

    def _translate(self, images: Tensor, noise: Tensor, source_labels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the translations (B, C, H, W), normalised, and g's probability of their new labels, (B,)."""
        pixels = images * self.std.to(images.dtype) + self.mean.to(images.dtype)
        if self.start == "channel":
            pixels = (pixels + noise.renorm(2, 1, NOISE_LENGTH)).clamp(0, 1)
        elif self.start == "image":
            pixels = (pixels + noise.renorm(2, 0, NOISE_LENGTH)).clamp(0, 1)
        with evaluation_mode(self.setting.model, self.translator):
            for _ in range(self.num_steps):
                pixels = self._step(pixels, source_labels, labels)
            with torch.no_grad():
                logits = self.translator(self._normalised(pixels))
        shares = functional.softmax(logits, dim=1).gather(1, labels[:, None]).squeeze(1)
        return self._normalised(pixels), shares

    def _normalised(self, pixels: Tensor) -> Tensor:
        return (pixels - self.mean.to(pixels.dtype)) / self.std.to(pixels.dtype)

    def _step(self, pixels: Tensor, source_labels: Tensor, labels: Tensor) -> Tensor:
        with torch.enable_grad():
            pixels = pixels.detach().requires_grad_(True)
            images = self._normalised(pixels)
            losses = cross_entropy(self.translator(images), labels)
            own = self.setting.model(images).gather(1, source_labels[:, None]).squeeze(1)
            (gradient,) = torch.autograd.grad((losses + self.lam * own).sum(), [pixels])
        lengths = gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        return (pixels.detach() - self.step_size * gradient / (lengths + 1e-10)).clamp(0, 1)


def _read_network(path: str, setting: Setting) -> nn.Module:
    """Return the network of a checkpoint: built from its record, or with the architecture of the one in training."""
    checkpoint = read_checkpoint(Path(path).expanduser())
    device = next(setting.model.parameters()).device
    if checkpoint.spec is None:
        network = frozen_copy(setting.model)
    else:
        record = checkpoint.spec
        if record["num_classes"] != len(setting.class_counts):
            raise LandscapeError(
                f"method 'm2m': expected a classifier of {len(setting.class_counts)} classes, "
                f"got {record['num_classes']} in {path}"
            )
        names = ("num_classes", "in_channels", "image_size", "head")
        shape = {name: record[name] for name in names}
        network = build_model(record["model"], **shape, **record.get("model_options", {}))
    load_weights(network, checkpoint)
    return network.to(device)
