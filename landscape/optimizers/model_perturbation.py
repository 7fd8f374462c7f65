"""Model perturbation: the loss averaged over copies of the network with noise on a few of its layers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import torch
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.optimizers.terms import Batch, Gradient, Term, check_choice, check_option

# Released: both parameters of the Beta distribution are drawn from this list, uniformly, for every tensor and copy.
BETA_PARAMETERS = (0.3, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0)
NUM_LEVELS = 5  # of the discrete noise, from -bound/2 to bound/2 (``reduction_factor`` 4)
# The value that each fifth of [0, 1] stands for, in units of the bound. The release writes the number of a fifth over the
# draw and then tests the next fifths: number 1 lies in the last one, so the second fifth ends up there.
LEVELS = {
    "discrete-beta": (-0.5, -0.25, 0.0, 0.25, 0.5),
    "discrete-beta-released": (-0.5, 0.5, 0.0, 0.25, 0.5),
}
DISTRIBUTIONS = (*LEVELS, "gaussian", "uniform")
LAYERS = ("last-convs", "convs", "last-weights", "all")
SHORTCUTS = ("shortcut", "downsample")


@dataclass(frozen=True)
class ModelPerturbation:
    r"""Model perturbation (MP), as in F2M: the mean loss of noisy copies of the network, and their scatter.

    .. math:: L = \frac1R \sum_{r=1}^R L_r + w\, \mathrm{std}_r(L_r), \qquad L_r = L(\theta + \epsilon_r)

    with the sample standard deviation (R - 1). R forward and R backward passes.

    Parameters
    ----------
    random_times
        Number R of copies; 2 as released.
    std_weight
        Factor w of the scatter; 2 as released. 0 leaves it out, and one copy has none.
    bound
        Width of the noise: no element of it exceeds half of it; 0.01 as released.
    distribution
        ``"discrete-beta"``: elements are drawn from a Beta distribution on [-bound/2, bound/2], whose two parameters are
        drawn anew for each tensor and copy out of 0.3, 0.5, 1, 2, 3, 4, 5, and moved to the middle of their fifth of the
        range in five equal steps from -bound/2 to bound/2. ``"discrete-beta-released"``: the same, except that the second
        fifth becomes bound/2, as the released code does. ``"gaussian"``: N(m, (bound/4)^2) clipped to +-bound/2, its
        mean m = bound (r/3 - 1/6) drawn for each tensor and step with r out of 0, 0.1, ..., 1, as the release's
        ``RandomNormal``. ``"uniform"``: on [-bound/2, bound/2].
    layers
        Which parameters get noise. ``"last-convs"``: the last ``num_layers`` kernels of convolutions that are no
        shortcuts (as released); in a network without convolutions the same as ``"last-weights"``. ``"convs"``: all of
        those. ``"last-weights"``: the last ``num_layers`` tensors of two or more dimensions. ``"all"``: every parameter.
    num_layers
        How many; 4 as released.

    Notes
    -----
    Source: Shi et al., *Overcoming Catastrophic Forgetting in Incremental Few-Shot Learning by Finding Flat Minima* (F2M),
    NeurIPS 2021, and its released code. CC-SAM (CVPR 2023) compares against it as "MP" without public settings. Differs
    from the release in:

    1. The gradient is that of the loss above. The release puts the weights back before it calls backward: for a
       convolution autograd then reads the restored kernel, so that the gradient with respect to its input (and hence that
       of all layers below) is the unperturbed network's, at the perturbed network's activations.
    2. The default distribution is the one that the code sets out to draw, symmetric about 0; see above. The options ``low``
       and ``high`` of the released configurations have no effect there, and are left out.
    3. The prototype loss on a pass at theta is left out: it belongs to incremental learning.
    4. Draws of the discrete distribution come from its exact probabilities, not by way of a continuous draw.
    """

    random_times: int = 2
    std_weight: float = 2.0
    bound: float = 0.01
    distribution: Literal["discrete-beta", "discrete-beta-released", "gaussian", "uniform"] = "discrete-beta"
    layers: Literal["last-convs", "convs", "last-weights", "all"] = "last-convs"
    num_layers: int = 4
    name: ClassVar[str] = "mp"
    needs: ClassVar[frozenset[str]] = frozenset({"generator", "names"})

    def __post_init__(self) -> None:
        for option in ("random_times", "num_layers"):
            check_option(self, option, getattr(self, option), minimum=1)
            if not isinstance(getattr(self, option), int):
                raise LandscapeError(f"mp: {option} must be a whole number, got {getattr(self, option)!r}")
        check_option(self, "std_weight", self.std_weight)
        check_option(self, "bound", self.bound)
        check_choice(self, "distribution", self.distribution, DISTRIBUTIONS)
        check_choice(self, "layers", self.layers, LAYERS)

    def is_moved(self, batch: Batch) -> list[bool]:
        """Return which of the trainable parameters get noise."""
        if self.layers == "all":
            return [True] * len(batch.params)
        # A kernel has at least (out, in, height, width); matrices and prompts have fewer dimensions.
        moved = [
            i
            for i, (name, p) in enumerate(zip(batch.names, batch.params))
            if p.dim() >= 4 and not any(word in name for word in SHORTCUTS)
        ]
        if self.layers == "last-weights" or (self.layers == "last-convs" and not moved):
            moved = [i for i, p in enumerate(batch.params) if p.dim() >= 2]
        if not moved:
            raise LandscapeError(f"mp: no trainable parameter is meant by layers='{self.layers}': choose layers=all")
        chosen = moved if self.layers == "convs" else moved[-self.num_layers :]
        return [i in chosen for i in range(len(batch.params))]

    def terms(self, batch: Batch) -> list[Term]:
        """Return the copies' terms, or where their scatter counts, the one gradient that combines them."""
        copies = self._copies(batch)
        if self.std_weight == 0 or self.random_times == 1:
            return [Term(perturbation=noise, scale=1 / self.random_times) for noise in copies]
        losses: list[Tensor] = []
        gradients: list[Gradient] = []
        for noise in copies:
            loss, gradient = batch.at(noise)
            losses.append(loss.double().mean())
            gradients.append(gradient)
        means = torch.stack(losses)
        # d std / d L_r = (L_r - mean) / ((R - 1) std), zero where all copies agree
        deviations = means - means.mean()
        slope = deviations / ((self.random_times - 1) * means.std()).clamp_min(torch.finfo(means.dtype).tiny)
        factors = (1 / self.random_times + self.std_weight * slope).to(batch.params[0].dtype)
        return [Term(gradient=gradient, scale=factor) for gradient, factor in zip(gradients, factors)]

    def _copies(self, batch: Batch) -> list[list[Tensor]]:
        """Return one tree of noise per copy; zero where a parameter is left alone."""
        moved = self.is_moved(batch)
        means = [self._mean(p, batch.generator) if m else None for p, m in zip(batch.params, moved)]
        return [
            [
                self._draw(p, batch.generator, mean) if m else torch.zeros_like(p)
                for p, m, mean in zip(batch.params, moved, means)
            ]
            for _ in range(self.random_times)
        ]

    def _mean(self, parameter: Tensor, generator: torch.Generator) -> Tensor | None:
        """Return the mean of this step's Gaussian noise on one tensor."""
        if self.distribution != "gaussian":
            return None
        tenths = torch.randint(11, (), generator=generator, device=generator.device)
        return (self.bound * (tenths / 30 - 1 / 6)).to(parameter.device, parameter.dtype)

    def _draw(self, parameter: Tensor, generator: torch.Generator, mean: Tensor | None) -> Tensor:
        shape, dtype, device = parameter.shape, parameter.dtype, generator.device
        if mean is not None:
            noise = torch.randn(shape, generator=generator, device=device, dtype=dtype).to(parameter.device)
            return (mean + self.bound / 4 * noise).clamp(-self.bound / 2, self.bound / 2)
        if self.distribution == "uniform":
            noise = torch.rand(shape, generator=generator, device=device, dtype=dtype)
            return ((noise - 0.5) * self.bound).to(parameter.device)
        which = torch.randint(len(BETA_PARAMETERS) ** 2, (), generator=generator, device=device)
        table, levels = _tables(self.distribution, str(device))
        thresholds = table.index_select(0, which.reshape(1))[0]
        uniform = torch.rand(shape, generator=generator, device=device, dtype=torch.float64)
        return (self.bound * levels[torch.bucketize(uniform, thresholds)]).to(parameter.device, dtype)


@lru_cache(maxsize=4)  # on its device once: a copy in every step would make the host wait
def _tables(distribution: str, device: str) -> tuple[Tensor, Tensor]:
    """Return, for the 49 pairs (alpha, beta), the Beta distribution function at 1/5, 2/5, 3/5, 4/5, and the five levels."""
    from scipy.special import betainc  # slow to import, and only this method needs it

    rows = [
        [betainc(alpha, beta, k / NUM_LEVELS) for k in range(1, NUM_LEVELS)]
        for alpha in BETA_PARAMETERS
        for beta in BETA_PARAMETERS
    ]
    levels = torch.tensor(LEVELS[distribution], dtype=torch.float64, device=device)
    return torch.tensor(rows, dtype=torch.float64, device=device), levels
