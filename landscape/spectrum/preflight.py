"""The proof, before any spectrum, that a lane's product is one fixed symmetric linear operator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.risk import ClassRisk
from landscape.risk.preflight import MIXING, require_proven
from landscape.risk.protocol import HessianProduct


@dataclass(frozen=True)
class Proof:
    """What the checks of one lane's operator found, all relative.

    Attributes
    ----------
    repeat
        |H u - H u again| / |H u|: 0 where the bits agree.
    linearity
        |H (u + a v) - H u - a H v| / (|H u| + a |H v|); in units of the classes' parts where those cancel.
    symmetry
        |u'Hv - v'Hu| / (|Hu| + |Hv|) for unit vectors, over all pairs of Lanczos vectors; in the same units.
    additivity
        |H u - sum_c w_c H_c u| / sum_c |w_c H_c u|; NaN for a lane of one class.
    rounding
        Absolute rounding of a product that the linearity check saw, in units of the eigenvalues.
    size
        sum_c |w_c H_c u|, the curvature that a lane's rounding is relative to; 0 for a lane of one class.
    num_products
        Products spent on the classes of the lane (one pass over its data), beside the repeat and the sum.
    """

    repeat: float = float("nan")
    linearity: float = float("nan")
    symmetry: float = float("nan")
    additivity: float = float("nan")
    rounding: float = 0.0
    num_products: int = 0
    size: float = 0.0


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
    tiny = math.sqrt(torch.finfo(torch.float64).tiny)  # of smaller products the squares underflow
    sums = [_class_sum(risk, weights[b], opening[b], image[b]) for b in range(len(names))]
    # Where classes cancel, as in the difference of two, the rounding is that of the classes.
    parts = torch.tensor([max(size, tiny) for _, size, _ in sums], dtype=torch.float64, device=hu.device)
    whole = torch.maximum(size_u + size_v, parts)
    defect = torch.linalg.vector_norm(mixed.double() - hu - MIXING * hv, dim=1)
    measured = {
        "repeat": torch.linalg.vector_norm(again.double() - hu, dim=1) / size_u.clamp_min(tiny),
        "linearity": defect / torch.maximum(size_u + MIXING * size_v, parts),
        "symmetry": ((opening.double() * hv).sum(1) - (second.double() * hu).sum(1)).abs() / whole,
    }
    table = {name: values.tolist() for name, values in measured.items()}
    rounding = defect.tolist()
    proofs = [
        Proof(
            **{key: values[b] for key, values in table.items()},
            additivity=additivity,
            rounding=rounding[b],
            num_products=num_products,
            size=size,
        )
        for b, (additivity, size, num_products) in enumerate(sums)
    ]
    measured["additivity"] = torch.tensor([p.additivity for p in proofs], dtype=torch.float64)
    for check, values in measured.items():
        known = [b for b, value in enumerate(values.tolist()) if not math.isnan(value) or check != "additivity"]
        require_proven({check: values[known]}, [names[b] for b in known], risk.theta.dtype)
    return proofs


def _class_sum(risk: ClassRisk, row: Tensor, vector: Tensor, product: Tensor) -> tuple[float, float, int]:
    """Return how far a product is from the sum over its classes, relative to the parts' size; the size; products spent."""
    classes = torch.nonzero(row)[:, 0]
    if len(classes) < 2 or not getattr(risk, "is_additive", True):
        return float("nan"), 0.0, 0
    own = torch.zeros(len(classes), len(row), dtype=torch.float64)
    own[torch.arange(len(classes)), classes] = 1.0
    parts = risk.hvps(risk.theta, own, vector.expand(len(classes), -1)).double()
    parts = row[classes].to(parts)[:, None] * parts
    size = float(torch.linalg.vector_norm(parts, dim=1).sum())
    error = float(torch.linalg.vector_norm(parts.sum(0) - product.double()))
    return error / max(size, math.sqrt(torch.finfo(torch.float64).tiny)), size, 1
