"""The proof, before any spectrum, that a lane's product is one fixed symmetric linear operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.risk import ClassRisk
from landscape.risk.protocol import HessianProduct

# Allowed defects, relative: a product in float32 carries 4 to 5 units of rounding (measured on ResNet-20), sums of a
# lane's classes a few more; the operator that the released protocol uses is wrong by 0.1 to 1.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}
# Class sums meet the same products in another order: the rounding of one product and no more.
ADDITIVITY_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11}
# The second vector enters the sum with this factor, so that an operator which only commutes with plain sums is seen.
MIXING = 0.75


@dataclass(frozen=True)
class Proof:
    """What the checks of one lane's operator found, all relative.

    Attributes
    ----------
    repeat
        |H u - H u again| / |H u|: 0 where the bits agree.
    linearity
        |H (u + a v) - H u - a H v| / (|H u| + a |H v|).
    symmetry
        |u'Hv - v'Hu| / (|Hu| + |Hv|) for unit vectors, over all pairs of Lanczos vectors.
    additivity
        |H u - sum_c w_c H_c u| / |H u|; NaN for a lane of one class.
    rounding
        Absolute rounding of a product that the linearity check saw, in units of the eigenvalues.
    num_products
        Products spent on the classes of the lane (one pass over its data), beside the repeat and the sum.
    """

    repeat: float = float("nan")
    linearity: float = float("nan")
    symmetry: float = float("nan")
    additivity: float = float("nan")
    rounding: float = 0.0
    num_products: int = 0


def prove_operator(
    risk: ClassRisk,
    product: HessianProduct,
    first: Sequence[tuple[Tensor, Tensor]],
    *,
    names: Sequence[str],
    weights: Tensor,
) -> list[Proof]:
    """Check the operators of B lanes on the first two vectors u, v of their Lanczos runs; two more products each.

    Parameters
    ----------
    risk, product, weights
        The risk, its product for the lanes, and their weights (B, C).
    first
        The pairs (u, H u) and, in more than one dimension, (v, H v), each (B, n).
    names
        Of the lanes.

    Raises
    ------
    LandscapeError
        Naming the lane, the check and the likely causes; not for a risk that redraws its data on purpose.
    """
    if not getattr(risk, "is_fixed", True):
        return [Proof()] * len(names)
    (opening, image), (second, others) = first[0], first[-1]
    again, mixed = product(torch.stack([opening, opening + MIXING * second], 1)).unbind(1)
    hu, hv = image.double(), others.double()
    size_u, size_v = torch.linalg.vector_norm(hu, dim=1), torch.linalg.vector_norm(hv, dim=1)
    tiny = torch.finfo(torch.float64).tiny
    defect = torch.linalg.vector_norm(mixed.double() - hu - MIXING * hv, dim=1)
    measured = {
        "repeat": torch.linalg.vector_norm(again.double() - hu, dim=1) / size_u.clamp_min(tiny),
        "linearity": defect / (size_u + MIXING * size_v).clamp_min(tiny),
        "symmetry": ((opening.double() * hv).sum(1) - (second.double() * hu).sum(1)).abs()
        / (size_u + size_v).clamp_min(tiny),
    }
    table = {name: values.tolist() for name, values in measured.items()}
    rounding = defect.tolist()
    proofs = []
    for b, name in enumerate(names):
        additivity, num_products = _additivity(risk, weights[b], opening[b], image[b])
        proof = Proof(
            **{key: values[b] for key, values in table.items()},
            additivity=additivity,
            rounding=rounding[b],
            num_products=num_products,
        )
        require_proven(proof, name, risk.theta)
        proofs.append(proof)
    return proofs


def _additivity(risk: ClassRisk, row: Tensor, vector: Tensor, product: Tensor) -> tuple[float, int]:
    classes = torch.nonzero(row)[:, 0]
    if len(classes) < 2 or not getattr(risk, "is_additive", True):
        return float("nan"), 0
    own = torch.zeros(len(classes), len(row), dtype=torch.float64)
    own[torch.arange(len(classes)), classes] = 1.0
    parts = risk.hvps(risk.theta, own, vector.expand(len(classes), -1)).double()
    total = (row[classes].to(parts)[:, None] * parts).sum(0)
    size = torch.linalg.vector_norm(product.double()).clamp_min(torch.finfo(torch.float64).tiny)
    return float(torch.linalg.vector_norm(total - product.double()) / size), 1


def require_proven(proof: Proof, name: str, theta: Tensor) -> None:
    """Raise LandscapeError for the first check that failed."""
    allowed = dict.fromkeys(("linearity", "symmetry"), TOLERANCE[theta.dtype])
    allowed["repeat"] = 0.0 if theta.device.type == "cpu" else TOLERANCE[theta.dtype] / 10
    allowed["additivity"] = ADDITIVITY_TOLERANCE[theta.dtype]
    causes = {
        "repeat": "the same product twice gives different numbers: augmentation redrawn at every pass, dropout, a noisy "
        "loss or a kernel that is not deterministic; freeze the data and the noise",
        "linearity": "the product is not linear in the vector: finite differences or a step that draws anew; use exact "
        "differentiation",
        "symmetry": "u'Hv and v'Hu differ: the product is not that of a Hessian, or the data change between products",
        "additivity": "the lane's product is not the weighted sum of its classes': a layer mixes the examples of a batch, "
        "or the weights do not match the class counts",
    }
    for check, limit in allowed.items():
        value = getattr(proof, check)
        if value > limit:
            raise LandscapeError(
                f"lane '{name}': the operator is not one fixed symmetric matrix, {check} is violated by {value:.1e} "
                f"(allowed {limit:.0e}): {causes[check]}"
            )
