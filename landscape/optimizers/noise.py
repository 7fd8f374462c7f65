"""Methods that perturb at random: Gaussian neighbourhood minimisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from landscape.directions import gaussian
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
