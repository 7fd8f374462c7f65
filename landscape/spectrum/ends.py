"""Both ends of a lane's spectrum, and their certificates from products in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.risk import ClassRisk
from landscape.spectrum.certificate import tighter_error
from landscape.spectrum.end_bounds import missed_distance, smallest_share
from landscape.spectrum.lanczos import BREAKDOWN_EPS, RitzPairs
from landscape.spectrum.options import SpectrumOptions
from landscape.spectrum.preflight import Proof

# Rounding of a product that no second evaluation can see, in units of eps |H|.
NOISE_EPS = 8.0
# The square root of the smallest normal number.
UNDERFLOW = float(torch.finfo(torch.float64).tiny) ** 0.5


@dataclass(frozen=True)
class Extremes:
    """Both ends of one lane's spectrum with their vectors.

    Attributes
    ----------
    values_low, values_high
        (k,) Rayleigh quotients of the lowest and highest Ritz vectors, outermost first: the true extremes lie at or
        beyond the first of each.
    residuals_low, residuals_high
        (k,) |H v - lambda v| of unit vectors, from an explicit product, in float64 unless ``certify="own"``.
    errors_low, errors_high
        (k,) how far an eigenvalue may be: the residual, or residual^2 over the gap to the next Ritz value if smaller.
    interval_min, interval_max
        What holds the ends themselves with the probability 1 - ``failure_probability`` each: one side is the Rayleigh
        quotient and its rounding, the other how far beyond its Ritz values the run may have missed one
        (:mod:`landscape.spectrum.end_bounds`) and what its precision does to H.
    vectors_low, vectors_high
        (k, n) unit vectors.
    noise
        Rounding of a product, in the precision of the certificate.
    precision_gap
        |H v - H' v| of the run's products against the certificate's: what the run's own precision does to H.
    ritz
        All Ritz pairs of the run; ``space`` (m, n) is their orthonormal basis, empty where none was kept.
    num_steps, num_plain_steps, num_hvps
        Length of the run, its steps before the first restart (those that the bound counts), products spent; a basis that
        was not kept costs the run again.
    random_share
        The share of the start's squared norm that is random: 1 for one from the sphere, 0 where nothing is known about what
        it holds of the ends, so that the outer sides of the intervals are infinite.
    own_ends
        The lowest and highest Rayleigh quotients of the run's own Ritz vectors, where other runs have found lower or higher
        ones.
    proof
        What the checks of the operator found.
    asymmetry, orthogonality
        Defects of the run, relative to |H|, and |Q'Q - I|.
    """

    values_low: np.ndarray
    values_high: np.ndarray
    residuals_low: np.ndarray
    residuals_high: np.ndarray
    errors_low: np.ndarray
    errors_high: np.ndarray
    vectors_low: Tensor
    vectors_high: Tensor
    interval_min: tuple[float, float]
    interval_max: tuple[float, float]
    noise: float
    precision_gap: float
    ritz: RitzPairs
    space: Tensor
    num_steps: int
    num_plain_steps: int
    num_hvps: int
    random_share: float
    own_ends: tuple[float, float]
    asymmetry: float
    orthogonality: float
    proof: Proof = field(default_factory=Proof)

    @property
    def lambda_min(self) -> float:
        """The lowest Rayleigh quotient."""
        return float(self.values_low[0])

    @property
    def lambda_max(self) -> float:
        """The highest Rayleigh quotient."""
        return float(self.values_high[0])

    @property
    def residual_min(self) -> float:
        """Residual of the lowest pair."""
        return float(self.residuals_low[0])

    @property
    def residual_max(self) -> float:
        """Residual of the highest pair."""
        return float(self.residuals_high[0])

    @property
    def error_min(self) -> float:
        """The smallest e with which the lowest quotient +- e covers the interval of the end."""
        return max(self.lambda_min - self.interval_min[0], self.interval_min[1] - self.lambda_min)

    @property
    def error_max(self) -> float:
        """The same of the highest."""
        return max(self.lambda_max - self.interval_max[0], self.interval_max[1] - self.lambda_max)

    @property
    def v_min(self) -> Tensor:
        """(n,) the unit vector of the lowest pair."""
        return self.vectors_low[0]

    @property
    def v_max(self) -> Tensor:
        """(n,) the unit vector of the highest pair."""
        return self.vectors_high[0]

    @property
    def is_random_start(self) -> bool:
        """Whether the run began on the sphere, so that its weights are a quadrature."""
        return self.random_share == 1

    @property
    def is_exhausted(self) -> bool:
        """Whether the Krylov space was exhausted."""
        return self.ritz.is_exhausted


@dataclass(frozen=True)
class Missed:
    """What a run's start may hold so little of that the run misses it: the size of the space, and the probability.

    ``random_share`` is that of the start's squared norm; 0 bounds nothing.
    """

    size: int
    probability: float
    random_share: float = 1.0

    def distances(self, ritz: RitzPairs) -> tuple[float, float]:
        """Return how far below and above the Ritz values an end may lie."""
        if len(ritz.values) >= self.size:
            return 0.0, 0.0
        if not self.random_share:
            return math.inf, math.inf
        share = smallest_share(self.size, self.probability, self.random_share)
        return missed_distance(ritz, share, is_low=True), missed_distance(ritz, share, is_low=False)

    def bounds(self, ritz: RitzPairs) -> tuple[float, float]:
        """Return the points that no eigenvalue lies beyond, in exact arithmetic."""
        below, above = self.distances(ritz)
        return float(ritz.values[0]) - below, float(ritz.values[-1]) + above


@dataclass
class Finished:
    """What a lane's run leaves behind when it stops."""

    ritz: RitzPairs
    plain: RitzPairs  # before the first restart
    space: Tensor
    ends: Tensor  # (2k, n)
    num_steps: int
    num_plain_steps: int
    num_products: int  # the steps, and those of a replay
    asymmetry: float


def exact_products(
    risk: ClassRisk, weights: Tensor, ends: Tensor, options: SpectrumOptions
) -> tuple[Tensor | None, int]:
    """Return products of the ends (B, 2k, n) in float64, all or the lowest k, and their number per lane; None where they
    would say nothing new."""
    if options.certify == "lowest":
        ends = ends[:, : options.num_extremes]
    if options.certify == "own" or risk.theta.dtype == torch.float64 or not getattr(risk, "is_fixed", True):
        return None, 0
    try:
        exact = risk.in_float64()
        with exact.hessian(exact.theta, weights) as product:
            return product(ends.double()), ends.shape[1]
    except RuntimeError as error:  # a toy loss with float32 constants, or no memory left
        reason = str(error).splitlines()[0]
        raise LandscapeError(
            f"the ends of the spectrum are certified in float64, and there the product fails ({reason}): make the loss "
            "follow the dtype of theta, or choose certify='own'"
        ) from error


def certify(
    done: Finished,
    products: Tensor,
    exact: Tensor | None,
    *,
    proof: Proof,
    missed: Missed,
    num_extra: int,
) -> Extremes:
    """Return the ends of a finished run with residuals from explicit products.

    Parameters
    ----------
    done
        The run, with its 2k ends (2k, n).
    products, exact
        H times the ends (2k, n) in the run's precision, and in float64: of all, of the lowest k, or none.
    proof, missed, num_extra
        Of the operator; what the start may hold little of; products beside the steps.
    """
    ends = done.ends
    vectors, images = ends.double(), products.double()
    if exact is not None:
        images = torch.cat([exact, images[len(exact) :]])
    sizes = torch.linalg.vector_norm(vectors, dim=1)  # 1 up to the rounding of ends
    quotients = (vectors * images).sum(1) / sizes**2
    defects = torch.linalg.vector_norm(images - quotients[:, None] * vectors, dim=1) / sizes
    values, residuals = quotients.cpu().numpy(), defects.cpu().numpy()
    norm = float(max(np.abs(done.ritz.values).max(), np.abs(values).max()))
    # Of curvatures below the second number the squares underflow, and with them every residual.
    noise = max(NOISE_EPS * torch.finfo(images.dtype if exact is not None else ends.dtype).eps * norm, UNDERFLOW)
    gap = max(proof.rounding, NOISE_EPS * torch.finfo(ends.dtype).eps * norm)
    if exact is None:
        noise = max(noise, proof.rounding)
    else:
        gap = max(gap, float(torch.linalg.vector_norm(exact - products[: len(exact)].double(), dim=1).max()))
    num_hvps = done.num_products + num_extra + proof.num_products
    k = len(values) // 2
    lost = gap
    if done.ritz.is_exhausted:  # what couples less than this was cut off
        lost = max(gap, BREAKDOWN_EPS * torch.finfo(ends.dtype).eps * norm)
    low, high = missed.bounds(done.plain)
    below, above = missed.distances(done.plain)
    own = rounding_of(noise, norm)
    # Of the ends that only the run certified, its own precision is the limit.
    errors = [
        tighter_error(value, residual, done.ritz, noise if exact is None or i < len(exact) else gap)
        for i, (value, residual) in enumerate(zip(values, residuals))
    ]
    return Extremes(
        values_low=values[:k],
        values_high=values[k:],
        residuals_low=residuals[:k],
        residuals_high=residuals[k:],
        errors_low=np.array(errors[:k]),
        errors_high=np.array(errors[k:]),
        vectors_low=ends[:k],
        vectors_high=ends[k:],
        # In float64 an end may have moved further than the two products of its vector told: the run's bound holds from
        # there on, too, and never leaves the eigenvalue that the residual holds.
        interval_min=(
            min(low - lost, float(values[0]) - max(own, rounding_of(errors[0], norm), below)),
            float(values[0]) + own,
        ),
        interval_max=(
            float(values[k]) - own,
            max(high + lost, float(values[k]) + max(own, rounding_of(errors[k], norm), above)),
        ),
        noise=noise,
        precision_gap=gap,
        ritz=done.ritz,
        space=done.space,
        num_steps=done.num_steps,
        num_plain_steps=done.num_plain_steps,
        num_hvps=num_hvps,
        random_share=missed.random_share,
        own_ends=(float(values[0]), float(values[k])),
        asymmetry=done.asymmetry,
        orthogonality=_orthogonality(done.space),
        proof=proof,
    )


def rounding_of(noise: float, norm: float) -> float:
    """Return the rounding of a quotient: that of a product, and none of the zero operator."""
    return noise if norm else 0.0


def _orthogonality(space: Tensor) -> float:
    if not len(space):
        return float("nan")
    gram = (space @ space.T).double()
    return float(torch.linalg.matrix_norm(gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)))
