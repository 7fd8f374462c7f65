"""Flatness as a distance: how far the weights can go before a loss has risen by delta."""

from __future__ import annotations

import numpy as np

from landscape.flatness.study import Estimate, Study
from landscape.surface import RadiusOptions, measure_radii

# Outermost radius that is scanned, in filter norms: beyond it a loss that has not risen has none, and its radius is inf.
LIMIT = 16.0


def loss_radius(study: Study) -> Estimate:
    r"""Return how far each lane's plain cross-entropy lets the weights move before it has risen by ``delta``.

    .. math:: r_c(\delta) = \mathrm{median}_{d, \pm} \min\{r > 0 : L_c(w \pm r d) \ge L_c(w) + \delta\}

    over ``num_pairs`` random filter-normalised directions d, both ways. A small radius is a sharp class. inf where more
    than half of the walks never rise so far.

    Notes
    -----
    Source: proposed here; the range search of the surfaces, :func:`landscape.surface.measure_radii`, which also gives the
    brackets of every single radius (at most 5 % of it).

    Critique: unlike a rise at a given radius it does not saturate, and in units of the filters' norms it does not change
    when layers are rescaled. It needs one delta for all classes, and a class that is confidently right has far to go
    because it is confident: read it beside the logit-normalised measures. Random directions see the mean curvature, not
    the extremes.
    """
    options = RadiusOptions(deltas=(study.options.delta,), num_directions=study.options.num_pairs, limit=LIMIT)
    weights = dict(zip(study.lanes.names, study.lanes.weights.tolist()))

    def compute() -> dict[str, np.ndarray]:
        found = measure_radii(study.risk, weights, options=options, seed=study.seed).isel(delta=0)
        return {name: found[f"median_{name}"].values for name in ("radius", "low", "high")}

    block = study.block("radii", compute)
    ends = {"loss_radius_low": block["low"], "loss_radius_high": block["high"]}
    return Estimate(block["radius"], more=ends, attributes={"delta": study.options.delta})
