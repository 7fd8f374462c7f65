"""Checks that a product is that of one fixed symmetric matrix, and that the classes add up to the lanes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.risk.protocol import ClassRisk, HessianProduct

# The second vector enters the sum with this factor, so that an operator which merely commutes with plain sums is seen.
MIXING = 0.75

# Allowed errors in units of the precision's epsilon (1.2e-7, 2.2e-16). A product carries a relative rounding error of
# about eps sqrt(k) for sums of depth k (the layers, times the logarithm of their width: k < 400 for 110 layers), hence
# 20 eps; symmetry and linearity compare three such products of vectors that may cancel, hence 25 times that. Class sums
# meet the same numbers in another order. An operator that is wrong is wrong by 1e-3 to 1, so a factor is no loss.
ALLOWED_EPS = {"symmetry": 500.0, "linearity": 500.0, "additivity": 500.0}
# Kernels on a GPU may add in any order. On a CPU bits agree where operands lie alike; elsewhere the last bits differ,
# and in float32 they are of the size of noise that must be seen: see landscape.spectrum.preflight for the second look.
REPEAT_EPS_ON_GPU = 100.0

CAUSES = {
    "repeat": "in order of likelihood: augmentation redrawn at every evaluation, dropout, a noisy loss, kernels that are not "
    "deterministic; freeze what draws",
    "symmetry": "in order of likelihood: the data change between products (augmentation redrawn), dropout or a noisy loss, an "
    "operation whose backward pass is not the derivative of its forward pass",
    "linearity": "in order of likelihood: the data change between products (augmentation redrawn), dropout or a noisy loss, "
    "finite differences in the place of derivatives",
    "additivity": "in order of likelihood: weights that do not belong to the class counts, a layer that mixes the examples of "
    "a batch, augmentation redrawn between the classes, dropout or a noisy loss",
}


def check_product(product: HessianProduct, u: Tensor, v: Tensor) -> dict[str, Tensor]:
    r"""Return how far the products of B lanes are from those of one fixed symmetric matrix each.

    Four products per lane, each in a call of its own, as an eigensolver would ask for them.

    Parameters
    ----------
    product
        (B, P, n) -> (B, P, n).
    u, v
        Two vectors (B, n) for each lane, of independent directions.

    Returns
    -------
    dict
        (B,) float64 each: ``repeat`` :math:`|Hu - (Hu)'| / |Hu|` of the same product taken twice, 0 where the bits agree;
        ``symmetry`` :math:`|u^T Hv - v^T Hu| / (|u||Hv| + |v||Hu|)`; ``linearity``
        :math:`|H(u + a v) - Hu - a Hv| / (|Hu| + |a||Hv|)`. All are 0 for a zero matrix.
    """
    hu, hv, again, mixed = (product(x[:, None])[:, 0].double() for x in (u, v, u, u + MIXING * v))
    a, b = u.double(), v.double()
    size_u, size_v, size_hu, size_hv = (torch.linalg.vector_norm(x, dim=1) for x in (a, b, hu, hv))
    skew = ((a * hv).sum(1) - (b * hu).sum(1)).abs()
    return {
        "repeat": _ratio(torch.linalg.vector_norm(again - hu, dim=1), size_hu),
        "symmetry": _ratio(skew, size_u * size_hv + size_v * size_hu),
        "linearity": _ratio(torch.linalg.vector_norm(mixed - hu - MIXING * hv, dim=1), size_hu + MIXING * size_hv),
    }


def check_additivity(risk: ClassRisk, theta: Tensor, weights: Tensor, u: Tensor) -> Tensor:
    r"""Return (B,) float64: :math:`|Hu - \sum_c w_c H_c u| / \sum_c |w_c H_c u|` for lanes (B, C) and vectors (B, n).

    One product for each lane and one for each of its classes; 0 for a zero matrix.
    """
    rows = weights.double().cpu()
    used = (rows != 0) & (risk.class_counts > 0)  # (B, C)
    whole = risk.hvps(theta, weights, u).double()
    lanes, classes = torch.nonzero(used, as_tuple=True)
    parts = risk.hvps(theta, torch.eye(rows.shape[1], dtype=torch.float64)[classes], u[lanes.to(u.device)]).double()
    parts = parts * rows[lanes, classes].to(parts)[:, None]
    index = lanes.to(parts.device)
    total = torch.zeros_like(whole).index_add_(0, index, parts)
    size = torch.zeros(len(rows), dtype=torch.float64, device=parts.device)
    size.index_add_(0, index, torch.linalg.vector_norm(parts, dim=1))
    return _ratio(torch.linalg.vector_norm(total - whole, dim=1), torch.maximum(size, whole.norm(dim=1)))


def check_difference(risk: ClassRisk, theta: Tensor, weights: Tensor, u: Tensor) -> Tensor:
    r"""Return (B,) float64: how far H u is from a central difference of gradients along u, relative to the larger.

    The one check that sees a part of the Hessian left out symmetrically, as by an operation whose backward pass detaches
    what it saved; the others pass it. It holds for smooth networks in float64 (to 1e-6), where the distance is
    :math:`\epsilon^{1/3}`, and not across kinks (ReLU, max-pool), so :func:`require_proven` has no limit for it. Two
    gradients and one product per lane.
    """
    whole = risk.hvps(theta, weights, u).double()
    distance = torch.finfo(theta.dtype).eps ** (1 / 3)
    out = []
    for row, vector, product in zip(weights, u, whole):
        size = torch.linalg.vector_norm(vector)
        step = vector * (distance / size)
        up, down = (risk.gradients(theta + sign * step, row[None])[0].double() for sign in (1, -1))
        difference = (up - down) * (size.double() / (2 * distance))
        scale = torch.maximum(torch.linalg.vector_norm(difference), torch.linalg.vector_norm(product))
        out.append(_ratio(torch.linalg.vector_norm(difference - product), scale))
    return torch.stack(out)


def require_proven(errors: Mapping[str, Tensor], names: Sequence[str], dtype: torch.dtype) -> None:
    """Raise LandscapeError for the first lane and check whose error is more than rounding.

    Parameters
    ----------
    errors
        (B,) for each check, as :func:`check_product` returns them, and ``additivity`` of :func:`check_additivity`.
        Where they lie decides whether a repeat must agree bit for bit.
    names
        Of the B lanes.
    dtype
        The precision of the products.

    Raises
    ------
    LandscapeError
        With the lane, the check, its error, what is allowed and the likely causes; also where an error is not finite.
    """
    eps = torch.finfo(dtype).eps
    for check, values in errors.items():
        allowed = ALLOWED_EPS[check] * eps if check in ALLOWED_EPS else REPEAT_EPS_ON_GPU * eps
        if check == "repeat" and values.device.type == "cpu":
            allowed = 0.0
        for name, value in zip(names, values.tolist(), strict=True):
            if not value <= allowed:  # NaN as well
                raise LandscapeError(
                    f"lane '{name}': the Hessian product fails the {check} check by {value:.1e} (allowed {allowed:.1e}): "
                    f"{CAUSES[check]}"
                )


def _ratio(error: Tensor, size: Tensor) -> Tensor:
    return torch.where(error == 0, 0.0, error / size)
