"""Methods that perturb by Gaussian noise: Gaussian neighbourhood minimisation and LPF-SGD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from landscape.directions import filter_norms, gaussian
from landscape.errors import LandscapeError
from landscape.optimizers.terms import Batch, Term, check_choice, check_option


@dataclass(frozen=True)
class GNM:
    r"""Gaussian neighbourhood minimisation: the gradient at a random point near theta, for the price of SGD.

    .. math:: \epsilon = \rho\, d\, h(e)\, \mathrm{clip}(z, -c, c), \quad z_j \sim N(0, \sigma^2), \qquad
              h(e) = 2^{-\lfloor (e - 1) / m \rfloor}

    with e the epoch from 0 and m = ``decay_every``. One draw per batch, shared by its examples, on every trainable
    parameter, without any normalisation by layer or gradient. One forward and one backward pass.

    Parameters
    ----------
    rho, dis_mul
        Factors rho and d of the noise; the release keeps them apart, only the product matters.
    sigma, clip
        Standard deviation before clipping, and the clip in absolute value; None does not clip.
    decay_every
        Epochs after which the noise is halved; the release uses the epoch at which re-weighting starts. None: never.
    schedule
        ``"described"``: h(0) = 1. ``"released"``: h(0) = 2, because the release floors -1 / m to -1.

    Notes
    -----
    Source: Li et al., *Improving Visual Prompt Tuning by Gaussian Neighborhood Minimization for Long-Tailed Visual
    Recognition*, NeurIPS 2024, and its released code, whose settings are the defaults: an elementwise standard
    deviation of 1.66e-3 until epoch 59.

    1. Differs from the paper: clip, dis_mul and the decay are the release's.
    2. Differs from the release: the schedule in epoch 0, see above.
    3. Differs from the release: parameters that no loss depends on do not drift; weights are restored from clones.
    """

    rho: float = 0.05
    sigma: float = 1 / 3
    clip: float | None = 1.0
    dis_mul: float = 0.1
    decay_every: int | None = 59
    schedule: Literal["described", "released"] = "described"
    name: ClassVar[str] = "gnm"
    needs: ClassVar[frozenset[str]] = frozenset({"generator"})

    def __post_init__(self) -> None:
        check_option(self, "rho", self.rho)
        check_option(self, "sigma", self.sigma)
        check_option(self, "dis_mul", self.dis_mul)
        check_choice(self, "schedule", self.schedule, ("described", "released"))
        if self.clip is not None:
            check_option(self, "clip", self.clip)
        if self.decay_every is not None:
            check_option(self, "decay_every", self.decay_every, minimum=1)

    def decay(self, epoch: int) -> float:
        """Return h(epoch)."""
        if self.decay_every is None:
            return 1.0
        halvings = (epoch - 1) // self.decay_every
        return 0.5 ** (halvings if self.schedule == "released" else max(0, halvings))

    def terms(self, batch: Batch) -> list[Term]:
        """Return the mean loss at theta plus noise."""
        noise = gaussian(batch.params, batch.generator, sigma=self.sigma, clip=self.clip)
        torch._foreach_mul_(noise, self.rho * self.dis_mul * self.decay(batch.epoch))
        return [Term(perturbation=noise)]


@dataclass(frozen=True)
class LPF:
    r"""LPF-SGD: the gradient of the loss smoothed by a Gaussian kernel that is as wide as each filter is long.

    .. math:: \text{step} = \frac1M \sum_{m=1}^M \nabla L_{B_m}(\theta + \epsilon_m), \qquad
              \epsilon_{m,f} \sim N(0, (\gamma \|\theta_f\|_2)^2 I)

    where the f are the slices of a tensor along its first dimension (the output filters of a convolution), and a tensor
    of one dimension is one filter. The batch is cut into M parts in its order; each has its own noise. M forward and M
    backward passes.

    Parameters
    ----------
    gamma
        Standard deviation of an element in units of its filter's norm: 0.002 on CIFAR, 0.001 on MNIST and TinyImageNet,
        0.0005 on ImageNet, as released.
    num_parts
        M; 1 in all released settings.

    Notes
    -----
    Source: Bisla et al., *Low-Pass Filtering SGD for Recovering Flat Optima in the Deep Learning Optimization Landscape*,
    AISTATS 2022, and its released code. Differs from the release in:

    1. The batch at hand is cut, so there are always M parts and their weights sum to one. There the parts have the size of
       the nominal batch over M, rounded down: a short last batch has fewer of them and hence a smaller gradient, and a
       size that M does not divide gives one part more.
    2. With more than one part each pass runs the whole batch and weighs the others' examples by zero. So M passes cost M
       times one, and BatchNorm sees the statistics of the batch, not of the part.
    3. Weights are restored from clones, not by subtracting the noise.
    """

    gamma: float = 0.002
    num_parts: int = 1
    name: ClassVar[str] = "lpf"

    def __post_init__(self) -> None:
        check_option(self, "gamma", self.gamma)
        check_option(self, "num_parts", self.num_parts, minimum=1)
        if not isinstance(self.num_parts, int):
            raise LandscapeError(f"lpf: num_parts must be a whole number, got {self.num_parts!r}")

    @property
    def needs(self) -> frozenset[str]:
        """Noise, and with several parts the labels, which say how long the batch is before its first pass."""
        return frozenset({"generator"}) if self.num_parts == 1 else frozenset({"generator", "labels"})

    def terms(self, batch: Batch) -> list[Term]:
        """Return the mean loss of each part of the batch at theta plus its own noise."""
        scales = [self.gamma * filter_norms(p) for p in batch.params]
        draws = [gaussian(batch.params, batch.generator, sigma=1.0) for _ in range(self.num_parts)]
        for noise in draws:
            torch._foreach_mul_(noise, scales)
        if self.num_parts == 1:
            return [Term(perturbation=draws[0])]
        assert batch.labels is not None
        num_examples = len(batch.labels)
        if num_examples < self.num_parts:
            raise LandscapeError(
                f"lpf: cannot cut a batch of {num_examples} examples into {self.num_parts} parts: "
                "lower num_parts or raise the batch size"
            )
        weights = torch.zeros(self.num_parts, num_examples, dtype=batch.params[0].dtype, device=batch.params[0].device)
        ends = [m * num_examples // self.num_parts for m in range(self.num_parts + 1)]
        for row, start, end in zip(weights, ends, ends[1:]):
            row[start:end] = num_examples / (self.num_parts * (end - start))
        return [Term(row, noise) for row, noise in zip(weights, draws)]
