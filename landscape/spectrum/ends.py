"""Both ends of a lane's spectrum, and their certificates from products in float64."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.risk import ClassRisk
from landscape.spectrum.certificate import tighter_error
from landscape.spectrum.lanczos import RitzPairs
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
    is_random_start
        Whether the run began at random: only then does the bound hold.
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
    noise: float
    precision_gap: float
    ritz: RitzPairs
    space: Tensor
    num_steps: int
    num_plain_steps: int
    num_hvps: int
    is_random_start: bool
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
    def v_min(self) -> Tensor:
        """(n,) the unit vector of the lowest pair."""
        return self.vectors_low[0]

    @property
    def v_max(self) -> Tensor:
        """(n,) the unit vector of the highest pair."""
        return self.vectors_high[0]

    @property
    def is_exhausted(self) -> bool:
        """Whether the Krylov space was exhausted."""
        return self.ritz.is_exhausted


@dataclass
class Finished:
    """What a lane's run leaves behind when it stops."""

    ritz: RitzPairs
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
    is_random: bool,
    num_extra: int,
) -> Extremes:
    """Return the ends of a finished run with residuals from explicit products.

    Parameters
    ----------
    done
        The run, with its 2k ends (2k, n).
    products, exact
        H times the ends (2k, n) in the run's precision, and in float64: of all, of the lowest k, or none.
    proof, is_random, num_extra
        Of the operator; whether the start was random; products beside the steps.
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
        noise=noise,
        precision_gap=gap,
        ritz=done.ritz,
        space=done.space,
        num_steps=done.num_steps,
        num_plain_steps=done.num_plain_steps,
        num_hvps=num_hvps,
        is_random_start=is_random,
        asymmetry=done.asymmetry,
        orthogonality=_orthogonality(done.space),
        proof=proof,
    )


def _orthogonality(space: Tensor) -> float:
    if not len(space):
        return float("nan")
    gram = (space @ space.T).double()
    return float(torch.linalg.matrix_norm(gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)))
