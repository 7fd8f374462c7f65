"""What stands behind the numbers of a lane: the checks of its operator, its error bars, and why it may be undecided."""

from __future__ import annotations

import math
from collections.abc import Sequence

import xarray as xr

from landscape.figures import preparation as prep

# Checks of the operator with what they say when they hold, in the order in which they are made.
_CHECKS = (
    ("repeat_error", "the product repeats"),
    ("symmetry_error", "it is symmetric"),
    ("linearity_error", "it is linear"),
    ("additivity_error", "the classes add up to it"),
)
_INTERVALS = (
    ("trace", "trace"),
    ("negative_energy", "negative energy"),
    ("negative_mass", "eigenvalues below −threshold λmax"),
)
# The threshold of the verdict where a result does not record it.
_THRESHOLD = 0.01

Proof = tuple[tuple[str, str], ...]


def number(dataset: xr.Dataset | None, variable: str, lane: str, **at: float | str | None) -> float:
    """Return one number of a lane, NaN where it was not measured."""
    if dataset is None or variable not in dataset or lane not in prep.all_lanes([dataset]) or None in at.values():
        return float("nan")
    return float(dataset[variable].sel({"lane": lane, **at}).item())


def lane_proof(spectrum: xr.Dataset, lane: str) -> Proof:
    """Return (what, what is known about it): the proof of a lane's operator, and the error bars of its numbers."""

    def known(variable: str) -> float:
        return number(spectrum, variable, lane)

    level = f"{100 * float(spectrum.attrs.get('interval_level', 0.95)):g} %"
    found = [("operator", _operator(spectrum, lane)), ("rounding", _rounding(spectrum, lane))]
    chance = spectrum.attrs.get("lower_bound_probability")
    for variable, name in (("lambda_min", "λmin"), ("lambda_max", "λmax")):
        if math.isfinite(known(f"{variable}_low")) and math.isfinite(known(f"{variable}_high")):
            below, above, residual = (prep.precise(known(f"{variable}_{part}")) for part in ("low", "high", "residual"))
            text = f"between {below} and {above}" + ("" if chance is None else f" with probability {float(chance):g}")
            found.append((name, f"{text}, rounding included (residual {residual})"))
    for variable, name in _INTERVALS:
        low, high = known(f"{variable}_low"), known(f"{variable}_high")
        if math.isfinite(low) and math.isfinite(high):
            found.append((name, f"{prep.short(known(variable))}, {level} interval {prep.interval(low, high)}"))
    if math.isfinite(known("index_lower_bound")):
        found.append(("negative eigenvalues", f"at least {known('index_lower_bound'):.0f}"))
    found.append(("curvature along v_min", _split(spectrum, lane, level)))
    if math.isfinite(known("num_hvps")):
        found.append(("Hessian products", f"{known('num_hvps'):.0f}"))
    return tuple((what, text) for what, text in found if text)


def _operator(spectrum: xr.Dataset, lane: str) -> str:
    parts = []
    for variable, words in _CHECKS:
        error = number(spectrum, variable, lane)
        if math.isfinite(error):
            parts.append(f"{words} {'bit for bit' if error == 0 else f'to {error:.1g}'.replace('-', '−')}")
    return ", ".join(parts)


def _rounding(spectrum: xr.Dataset, lane: str) -> str:
    noise, gap = number(spectrum, "noise_floor", lane), number(spectrum, "precision_gap", lane)
    dtype = str(spectrum.attrs.get("dtype", "the run's precision"))
    parts = [f"{prep.short(noise)} in λmin and λmax"] if math.isfinite(noise) else []
    if math.isfinite(gap):
        parts.append(f"{dtype} moves the Hessian by {prep.short(gap)}")
    return "; ".join(parts)


def _split(spectrum: xr.Dataset, lane: str, level: str) -> str:
    loss, network = number(spectrum, "gauss_newton_curvature", lane), number(spectrum, "functional_curvature", lane)
    low, high = number(spectrum, "curvature_low", lane), number(spectrum, "curvature_high", lane)
    parts = []
    if math.isfinite(loss) and math.isfinite(network):
        parts.append(f"{prep.short(loss)} of the loss (v'Gv), {prep.short(network)} of the network (v'Fv)")
    if math.isfinite(low) and math.isfinite(high):
        parts.append(f"{level} interval over images {prep.interval(low, high)}")
    return "; ".join(parts)


def why_undecided(spectrum: xr.Dataset, lane: str) -> str:
    """Return what would decide a lane, from its numbers: a walk, another precision, or more steps."""
    threshold = float(spectrum.attrs.get("option_threshold", _THRESHOLD))
    low, high = number(spectrum, "lambda_min", lane), number(spectrum, "lambda_max", lane)
    error = number(spectrum, "lambda_min_residual", lane) + number(spectrum, "noise_floor", lane)
    needed = threshold * max(high, 0.0)
    if low + error < 0 and -low > needed:
        if math.isnan(number(spectrum, "quadratic_radius", lane)):
            return "negative curvature is certified, but the walk that tells a saddle from a slope was left out"
        return "negative curvature is certified, but the loss does not follow it above its own rounding"
    gap = number(spectrum, "precision_gap", lane)
    if number(spectrum, "lambda_min_lower_bound", lane) + gap >= -needed:
        limit = f"rounding moves the Hessian by {prep.short(gap)}, more than the threshold leaves room for"
        if str(spectrum.attrs.get("dtype", "")) == "float64":
            return f"{limit}, in float64 too: only a larger threshold would decide"
        return f"{limit}: float64 would decide, more Lanczos steps would not"
    steps = number(spectrum, "num_steps_to_decide", lane)
    return f"{f'{steps:.0f}' if math.isfinite(steps) else 'more'} Lanczos steps would decide"


def undecided_warnings(spectrum: xr.Dataset, lanes: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Return (what would decide, lanes) for undecided lanes, those with the same remedy together."""
    found: dict[str, list[str]] = {}
    for lane in lanes:
        reason = why_undecided(spectrum, lane)
        if reason.startswith("rounding"):
            reason = "rounding of the run leaves no room for the threshold: float64 would decide, more Lanczos steps would not"
            if str(spectrum.attrs.get("dtype", "")) == "float64":
                reason = "rounding leaves no room for the threshold even in float64"
        elif reason.endswith("steps would decide"):
            reason = "more Lanczos steps would decide"
        found.setdefault(reason, []).append(lane)
    return list(found.items())
