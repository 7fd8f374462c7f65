"""The ends of a lane, as far as all its runs know them: the extreme run's, and what the density's probes found beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from landscape.risk import ClassRisk
from landscape.risk.protocol import HessianProduct
from landscape.spectrum.ends import Extremes, rounding_of
from landscape.spectrum.extremes import find_extremes_of
from landscape.spectrum.options import SpectrumOptions
from landscape.spectrum.sampling import Density, ProbedEnds


def join_probes(
    risk: ClassRisk,
    product: HessianProduct,
    weights: Tensor,
    extremes: Sequence[Extremes],
    densities: Sequence[Density],
    *,
    names: Sequence[str],
    options: SpectrumOptions,
) -> list[Extremes]:
    """Return the extremes of B lanes (weights (B, C)), none of which lies inside a Ritz value of the lane's probes.

    A Ritz value is an upper bound of the smallest eigenvalue: where a probe has a lower one than the extreme run's, the run
    has converged to another eigenvalue, and a run from the probe's Ritz vectors finds the end.
    """
    out = list(extremes)
    if not getattr(risk, "is_fixed", True):
        return out
    outside = {b: d.ends.outside for b, d in enumerate(densities) if d.ends is not None and d.ends.outside is not None}
    if outside:
        lanes = list(outside)
        again = replace(options, num_extremes=1, until="converged", budget=None)
        found = find_extremes_of(
            risk,
            lambda v, lanes=None, chosen=lanes: product(
                v, lanes=chosen if lanes is None else [chosen[i] for i in lanes]
            ),
            weights[lanes],
            torch.stack(list(outside.values())).double().cpu(),
            names=[names[b] for b in lanes],
            options=again,
            random_shares=[0.0] * len(lanes),
            proofs=[replace(extremes[b].proof, num_products=0) for b in lanes],
        )
        for b, other in zip(lanes, found):
            out[b] = _outermost(out[b], other)
    for b, density in enumerate(densities):
        if density.ends is not None:
            out[b] = _with_probed(out[b], density.ends)
    return out


def _outermost(own: Extremes, other: Extremes) -> Extremes:
    """Return the extreme run's ends with those of another run that lie outside them."""
    changes: dict[str, object] = {
        "num_hvps": own.num_hvps + other.num_hvps,
        "noise": max(own.noise, other.noise),
        "precision_gap": max(own.precision_gap, other.precision_gap),
    }
    k = len(own.values_low)
    for side, is_outside in (("low", other.lambda_min < own.lambda_min), ("high", other.lambda_max > own.lambda_max)):
        if not is_outside:
            continue
        for name in ("values", "residuals", "errors"):
            both = [getattr(run, f"{name}_{side}") for run in (other, own)]
            changes[f"{name}_{side}"] = np.concatenate(both)[:k]
        vectors = [getattr(run, f"vectors_{side}") for run in (other, own)]
        changes[f"vectors_{side}"] = torch.cat(vectors)[:k]
    return replace(own, **changes)  # type: ignore[arg-type]


def _with_probed(extremes: Extremes, probed: ProbedEnds) -> Extremes:
    """Return the extremes with intervals that rest on all runs.

    The outer side of an interval is the better of the extreme run's and the probes', each with its part of the failure
    probability; only the probes' where the run's start has been seen to hold too little, an end lying beyond its bound.
    """
    norm = max(float(np.abs(extremes.ritz.values).max(initial=0.0)), abs(extremes.lambda_min), abs(extremes.lambda_max))
    noise = rounding_of(extremes.noise, norm)
    below, above = (max(noise, rounding_of(float(e[0]), norm)) for e in (extremes.errors_low, extremes.errors_high))
    (low, _), (_, high) = extremes.interval_min, extremes.interval_max
    value_min, value_max = extremes.lambda_min, extremes.lambda_max
    low = probed.low if value_min + noise < low else max(low, probed.low)
    high = probed.high if value_max - noise > high else min(high, probed.high)
    return replace(
        extremes,
        interval_min=(min(low, value_min - below), value_min + noise),
        interval_max=(value_max - noise, max(high, value_max + above)),
    )
