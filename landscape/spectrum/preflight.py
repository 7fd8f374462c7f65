"""The proof, before any spectrum, that a lane's product is one fixed symmetric linear operator."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.risk import ClassRisk, ModelRisk
from landscape.risk.causes import require_full_precision, why_not_repeated
from landscape.risk.preflight import ALLOWED_EPS, CAUSES, MIXING, require_proven
from landscape.risk.protocol import HessianProduct

# In float64 the same product at other addresses differs by rounding, 1e-16 times what cancels; noise of 1e-6, averaged over
# ten thousand examples, by 1e-8.
REPEAT_IN_FLOAT64 = 1e-10
# Where float64 itself is in doubt, the rounding of the product is measured from differences of order 4 between products at
# neighbouring weights, this far apart; a check may exceed it so many times, and none by more than a wrong operator would.
NUM_NEIGHBOURS = 9
ORDER = 4
SPACING = 1e-7
ROUNDING_FACTOR = 10.0
MOST_IN_FLOAT64 = 1e-6
EPS = torch.finfo(torch.float64).eps


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
        Absolute rounding of a product that the checks saw, in units of the eigenvalues.
    rounded
        The checks that only float64 passed: what they saw was the rounding of the run's precision.
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
    rounded: tuple[str, ...] = ()


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
    return [
        excuse(risk, proof, weights[b], opening[b], second[b], name=names[b], images=(image[b], others[b]))
        for b, proof in enumerate(proofs)
    ]


def failures(proof: Proof, name: str, dtype: torch.dtype, device: torch.device) -> dict[str, LandscapeError]:
    """Return the checks that a lane's proof fails in a precision, each with its refusal."""
    found = {}
    for check in ("repeat", "linearity", "symmetry", "additivity"):
        value = getattr(proof, check)
        if check in proof.rounded or (check == "additivity" and math.isnan(value)):
            continue
        try:
            require_proven({check: torch.tensor([value], dtype=torch.float64, device=device)}, [name], dtype)
        except LandscapeError as refusal:
            found[check] = refusal
    return found


def excuse(
    risk: ClassRisk,
    proof: Proof,
    row: Tensor,
    u: Tensor,
    v: Tensor,
    *,
    name: str,
    images: tuple[Tensor, Tensor] | None = None,
) -> Proof:
    """Return a lane's proof if what fails in it is rounding, as the same checks in float64 tell; else refuse.

    Parameters
    ----------
    row, u, v
        The lane's weights (C,) and two vectors (n,).
    images
        H u and H v in the run's precision, where they are known.

    Raises
    ------
    LandscapeError
        Naming the cause that was measured.
    """
    failed = failures(proof, name, risk.theta.dtype, u.device)
    if not failed:
        return proof
    check, refusal = next(iter(failed.items()))
    if not all(math.isfinite(getattr(proof, other)) for other in failed):
        raise refusal
    own = getattr(risk, "_risk", risk)  # a block's risk is that of the network
    if isinstance(own, ModelRisk):
        require_full_precision(own, f"lane '{name}': the Hessian product fails the {check} check")
    try:
        exact = risk.in_float64()
        with exact.hessian(exact.theta, row[None]) as product:
            found, images_exact, size = _in_float64(exact, product, row, torch.stack([u, v]).double())
            allowed = ALLOWED_EPS["symmetry"] * EPS
            if any(not found[c] <= allowed for c in failed if c != "repeat"):
                allowed = max(allowed, min(ROUNDING_FACTOR * _rounding(exact, row, u.double()) / size, MOST_IN_FLOAT64))
    except (RuntimeError, AttributeError) as error:  # a toy loss with float32 constants, or no memory left
        raise refusal from error
    still = [c for c in failed if not found[c] <= (REPEAT_IN_FLOAT64 if c == "repeat" else allowed)]
    if still:
        raise LandscapeError(_measured(own, name, still[0], proof, found)) from refusal
    size = max(proof.size, float(torch.linalg.vector_norm(images_exact, dim=1).sum()))
    seen = max(getattr(proof, other) for other in failed) * size
    apart = 0.0
    if images is not None:
        apart = float(torch.linalg.vector_norm(images_exact - torch.stack(images).double(), dim=1).max())
    return replace(proof, rounding=max(proof.rounding, seen, apart), rounded=(*proof.rounded, *failed))


def rounding_explained(proof: Proof) -> str:
    """Return the sentence of a lane's evidence on checks that only float64 passed; empty where there are none."""
    if not proof.rounded:
        return ""
    return (
        f"; the {' and '.join(proof.rounded)} of its products is rounding (as float64 and neighbouring weights show), "
        f"which moves them by {proof.rounding:.1e}"
    )


def _in_float64(
    exact: ClassRisk, product: HessianProduct, row: Tensor, vectors: Tensor
) -> tuple[dict[str, float], Tensor, float]:
    """Return the checks of one lane in float64 on two vectors (2, n), their products, and what the checks are relative to."""
    u, v = vectors
    hu, hv, again, mixed = (product(x[None, None])[0, 0] for x in (u, v, u, u + MIXING * v))
    tiny = math.sqrt(torch.finfo(torch.float64).tiny)
    additivity, parts, _ = _class_sum(exact, row, u, hu)
    size_u, size_v = float(hu.norm()), float(hv.norm())
    found = {
        "repeat": float((again - hu).norm()) / max(size_u, parts, tiny),
        "linearity": float((mixed - hu - MIXING * hv).norm()) / max(size_u + MIXING * size_v, parts, tiny),
        "symmetry": abs(float(u @ hv - v @ hu)) / max(size_u + size_v, parts, tiny),
        "additivity": additivity,
    }
    return found, torch.stack([hu, hv]), max(size_u, parts, tiny)


def _rounding(exact: ClassRisk, row: Tensor, u: Tensor) -> float:
    """Return the rounding of H u, from a table of differences as in :func:`landscape.spectrum.rounding.computational_noise`."""
    theta = exact.theta
    size = float(torch.linalg.vector_norm(theta)) or 1.0
    signs = 1.0 - 2.0 * (torch.arange(len(theta), device=theta.device) % 2).double()
    direction = signs * (SPACING * size / math.sqrt(len(theta)))
    products = []
    for k in range(NUM_NEIGHBOURS):
        with exact.hessian(theta + k * direction, row[None]) as product:
            products.append(product(u[None, None])[0, 0])
    table = torch.diff(torch.stack(products), n=ORDER, dim=0)
    gamma = math.factorial(ORDER) ** 2 / math.factorial(2 * ORDER)
    return math.sqrt(gamma * float(table.square().sum(1).mean()))


def _measured(risk: ClassRisk, name: str, check: str, proof: Proof, found: Mapping[str, float]) -> str:
    """Return the refusal of a lane that fails in float64 too, with the cause that was measured."""
    what = f"lane '{name}': the Hessian product fails the {check} check by {getattr(proof, check):.1e}"
    if risk.theta.dtype != torch.float64:
        what += f", in float64 by {found[check]:.1e}"
    cause = why_not_repeated(risk) if isinstance(risk, ModelRisk) else None
    if cause is None and check in ("symmetry", "linearity") and isinstance(risk, ModelRisk):
        cause = (
            "two evaluations of the loss agree, so nothing is redrawn: an operation's backward pass is not the derivative of "
            "its forward pass, or its second derivative is wrong; write the operation out in differentiable ones"
        )
    return f"{what}: {cause or CAUSES[check]}"


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
