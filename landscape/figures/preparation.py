"""From Datasets to picture data: which lanes, in which order and look, the smoothed density, ranges, the scale card."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias, cast

import numpy as np
import xarray as xr

from landscape.errors import LandscapeError, unknown_name
from landscape.figures.picture import Array, ColourScale, symlog
from landscape.figures.style import LANE_LOOKS, Look, class_looks

Results: TypeAlias = xr.Dataset | Mapping[str, xr.Dataset]

GROUP_LANES = ("head", "medium", "tail")
_CARD = (
    ("objective", "objective"),
    ("split", "split"),
    ("normalization", "normalisation"),
    ("batchnorm", "BatchNorm"),
    ("augmentation", "augmentation"),
    ("parameters", "parameters"),
    ("group_rule", "groups"),
    ("seed", "seed"),
    ("dtype", "dtype"),
)


def as_mapping(data: Results, variable: str) -> dict[str, xr.Dataset]:
    """Return ``{optimizer: Dataset}``; a lone Dataset gets its own optimizer's name, or none.

    Raises
    ------
    LandscapeError
        If nothing was given, or a Dataset lacks ``variable`` or has no lane.
    """
    if isinstance(data, xr.Dataset):
        data = {str(data.attrs.get("optimizer", "")): data}
    if not isinstance(data, Mapping) or not data:
        raise LandscapeError(
            f"expected a Dataset or a mapping of names to Datasets, got {data!r}: measure something first"
        )
    for name, dataset in data.items():
        where = f" of '{name}'" if name else ""
        if variable not in dataset:
            held = ", ".join(map(str, dataset.data_vars)) or "nothing"
            raise LandscapeError(
                f"expected the variable '{variable}' in the results{where}, got {held}: measure it first"
            )
        if "lane" in dataset[variable].dims and dataset.sizes.get("lane", 0) == 0:
            raise LandscapeError(f"expected at least one lane in the results{where}, got none: choose other lanes")
    return {str(name): cast(xr.Dataset, dataset) for name, dataset in data.items()}


def all_lanes(datasets: Iterable[xr.Dataset]) -> list[str]:
    """Return the lanes of several Datasets, each once, in the order of first appearance."""
    return list(dict.fromkeys(str(lane) for dataset in datasets for lane in np.atleast_1d(dataset["lane"].values)))


def _per_lane(dataset: xr.Dataset, name: str) -> dict[str, Any]:
    """Return {lane: value} of a coordinate or variable over lanes; empty where it is not recorded."""
    if name not in dataset.variables:
        return {}
    return dict(zip(all_lanes([dataset]), np.atleast_1d(dataset[name].values).tolist()))


def lane_kind(dataset: xr.Dataset, lane: str) -> str:
    """Return ``class``, ``group`` or ``all``."""
    guess = "group" if lane in GROUP_LANES else "all" if lane == "all" else "class"
    return str(_per_lane(dataset, "lane_kind").get(lane, guess))


def lane_group(dataset: xr.Dataset, lane: str) -> str:
    """Return ``head``, ``medium`` or ``tail`` for a class or group lane, ``all`` for the whole, `` `` if unknown."""
    return lane if lane_kind(dataset, lane) != "class" else str(_per_lane(dataset, "lane_group").get(lane, ""))


def num_examples(dataset: xr.Dataset, lane: str) -> int | None:
    """Return the number of examples behind a lane, or None where it is not recorded."""
    value = float(_per_lane(dataset, "num_examples").get(lane, math.nan))
    return int(value) if math.isfinite(value) else None


def class_lanes(dataset: xr.Dataset) -> list[str]:
    """Return the class lanes from head to tail: by group, then by falling number of examples, then as stored."""
    kinds, groups, counts = (_per_lane(dataset, name) for name in ("lane_kind", "lane_group", "num_examples"))
    guess = dict.fromkeys(GROUP_LANES, "group") | {"all": "all"}
    lanes = [lane for lane in all_lanes([dataset]) if kinds.get(lane, guess.get(lane, "class")) == "class"]
    order = {name: rank for rank, name in enumerate(GROUP_LANES)}

    def rank(lane: str) -> tuple[int, float]:
        count = float(counts.get(lane, 0))
        return order.get(str(groups.get(lane, "")), 3), -count if math.isfinite(count) else 0.0

    return sorted(lanes, key=rank)


def choose_lanes(
    datasets: Mapping[str, xr.Dataset], lanes: str | Sequence[str] | None, default: Sequence[str]
) -> list[str]:
    """Return the lanes to draw.

    Parameters
    ----------
    datasets
        What is drawn; a lane must exist in at least one of them.
    lanes
        Names, or ``"classes"`` (head to tail), ``"groups"``, ``"every"``, or None for ``default``.
    default
        Taken as far as present; if none is, all lanes are drawn.

    Raises
    ------
    LandscapeError
        If a name is unknown, with the nearest known one.
    """
    known = all_lanes(datasets.values())
    first = next(iter(datasets.values()))
    classes = list(dict.fromkeys(lane for dataset in datasets.values() for lane in class_lanes(dataset)))
    rest = [lane for lane in known if lane not in classes]
    if lanes is None:
        return [lane for lane in default if lane in known] or [*classes, *rest]
    if isinstance(lanes, str):
        words = {"classes": classes, "groups": [lane for lane in rest if lane != "all"], "every": [*classes, *rest]}
        chosen = words.get(lanes, [lanes])
        if not chosen:
            raise LandscapeError(f"expected {lanes} among the lanes, got {', '.join(known)}: choose lanes by name")
    else:
        chosen = [str(lane) for lane in lanes]
    for lane in chosen:
        if lane not in known:
            raise unknown_name("lane", lane, [*known, "classes", "groups", "every"])
    if not chosen:
        raise LandscapeError(f"expected at least one lane, got none: choose from {', '.join(all_lanes([first]))}")
    return chosen


def lane_looks(datasets: Mapping[str, xr.Dataset], lanes: Sequence[str]) -> dict[str, Look]:
    """Return a look per lane: fixed for head, medium, tail, all; a head-to-tail ramp for classes."""
    ordered = list(dict.fromkeys(lane for dataset in datasets.values() for lane in class_lanes(dataset)))
    ordered = [lane for lane in ordered if lane in lanes]
    looks = class_looks(ordered)
    looks.update({lane: LANE_LOOKS.get(lane, LANE_LOOKS["all"]) for lane in lanes if lane not in looks})
    return looks


def lane_label(dataset: xr.Dataset, lane: str) -> str:
    """Return the lane's name with its number of examples."""
    count = num_examples(dataset, lane) if lane in all_lanes([dataset]) else None
    return lane if count is None else f"{lane} (n={count})"


def thinned(names: Sequence[str], most: int) -> tuple[str, ...]:
    """Return the names with all but every k-th blank, so that at most about ``most`` remain legible."""
    every = max(1, math.ceil(len(names) / most))
    return tuple(name if k % every == 0 else "" for k, name in enumerate(names))


def smooth_density(
    values: Array,
    weights: Array,
    *,
    width: float = 0.06,
    linear_within: float = 1.0,
    limits: tuple[float, float] | None = None,
) -> tuple[Array, Array]:
    """Smooth raw Ritz nodes and weights into a picture of the spectral density on a symmetric logarithmic axis.

    ``p(u) = 1/P sum_p sum_j w_pj N(u; symlog(lambda_pj), width^2)``: a density per unit of the drawn axis, so that
    the area under the curve, as drawn, is the share of eigenvalues. For pictures only; statistics come from the raw
    nodes.

    Parameters
    ----------
    values, weights
        Ritz values and weights, (P, S), NaN where a probe stopped early; the weights of a probe sum to 1.
    width
        Standard deviation of the Gaussian in units of the drawn axis (decades beyond ``linear_within``).
    linear_within
        Half-width of the linear part of the axis.
    limits
        Range of eigenvalues to cover, so that several curves share one grid; the nodes' own range by default.

    Returns
    -------
    tuple of numpy.ndarray
        Positions u on the axis and density per unit of u, both (G,). The grid reaches 5 widths beyond the limits in
        steps of at most a third of a width, so no kernel is cut and the curve integrates to 1.
    """
    kept = np.isfinite(values) & np.isfinite(weights)
    if not kept.any():
        raise LandscapeError("expected Ritz values and weights, got only missing ones: measure the spectrum first")
    nodes = symlog(values[kept], linear_within)
    low, high = symlog(np.array(limits), linear_within) if limits is not None else (nodes.min(), nodes.max())
    low, high = min(low, nodes.min()) - 5.5 * width, max(high, nodes.max()) + 5.5 * width
    grid = np.linspace(low, high, int(np.ceil((high - low) / (width / 3.0))) + 1)
    probes = int(np.any(kept, axis=-1).sum())
    kernel = np.exp(-0.5 * ((grid[:, None] - nodes[None, :]) / width) ** 2) / (width * math.sqrt(2.0 * math.pi))
    return grid, kernel @ weights[kept] / probes


def finite_range(arrays: Iterable[Any]) -> tuple[float, float]:
    """Return the smallest and largest finite number; (0, 1) where there is none."""
    pieces = [np.asarray(array, dtype=np.float64).ravel() for array in arrays]
    joined = np.concatenate(pieces) if pieces else np.empty(0)
    joined = joined[np.isfinite(joined)]
    return (float(joined.min()), float(joined.max())) if joined.size else (0.0, 1.0)


def padded(low: float, high: float, share: float = 0.05, *, log: bool = False) -> tuple[float, float]:
    """Return the range with a margin of ``share`` of itself on each side."""
    if log:
        left, right = padded(math.log10(low), math.log10(high), share)
        return 10.0**left, 10.0**right
    margin = (high - low) * share or abs(high) * share or 0.5
    return low - margin, high + margin


def colour_scale(arrays: Iterable[Any], label: str, *, num_levels: int = 15, log: bool | None = None) -> ColourScale:
    """Return one colour scale for all arrays: logarithmic where they span more than a factor of 12, else linear."""
    low, high = finite_range(arrays)
    if log is None:
        log = low > 0 and high / low > 12.0
    if high <= low:
        low, high = low - 0.5, high + 0.5
        log = log and low > 0
    if log:
        levels = np.geomspace(low, high, num_levels)
        return ColourScale(label, low, high, True, tuple(levels.tolist()), tuple(log_ticks(low, high)))
    step = _nice_step((high - low) / (num_levels - 1))
    start, stop = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    levels = np.round(np.arange(start, stop + 1) * step, 12)
    return ColourScale(label, float(levels[0]), float(levels[-1]), False, tuple(levels.tolist()))


def grid_shape(count: int, *, widest: int = 4) -> tuple[int, int]:
    """Return (rows, columns) for ``count`` small multiples."""
    columns = min(widest, count) if count <= widest or count > 2 * widest else math.ceil(count / 2)
    return math.ceil(count / columns), columns


def short(value: float) -> str:
    """Return a number as a reader wants it: three significant digits, the exponent only where it helps.

    Examples
    --------
    >>> short(-38.312), short(0.00012), short(334.4), short(120000.0)
    ('−38.3', '1.2e−4', '334', '1.2e5')
    """
    if not math.isfinite(value):
        return "–"
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}".replace("-", "−")
    text = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return text.replace("-", "−")


def with_error(value: float, error: float) -> str:
    """Return ``value ± error``: the error with one digit, the value to it; no error where it is not recorded.

    Examples
    --------
    >>> with_error(-100.4871, 0.07), with_error(2.4, 0.3), with_error(2.4, float("nan"))
    ('−100.49 ± 0.07', '2.4 ± 0.3', '2.4')
    """
    if not math.isfinite(value):
        return "–"
    if not math.isfinite(error):
        return short(value)
    text = short(value)
    if error > 0 and 1e-3 <= abs(value) < 1e5:
        digits = math.floor(math.log10(abs(value))) - math.floor(math.log10(float(f"{error:.1g}"))) + 1
        if digits > 3:
            text = f"{value:.{min(digits, 6)}g}".replace("-", "−")
    return f"{text} ± {short(float(f'{error:.1g}'))}"


def interval(low: float, high: float) -> str:
    """Return ``[low, high]``, or a dash where it is not known."""
    return f"[{short(low)}, {short(high)}]" if math.isfinite(low) and math.isfinite(high) else "–"


def scale_card(datasets: Mapping[str, xr.Dataset], *, lanes: Sequence[str] = ()) -> str:
    """Return what a reader must know to compare this figure with another one; what is not recorded is left out."""
    parts = []
    for key, label in _CARD:
        found = list(dict.fromkeys(str(d.attrs[key]) for d in datasets.values() if str(d.attrs.get(key, "")) != ""))
        if found:
            parts.append(f"{label}: {' / '.join(found)}")
    first = next(iter(datasets.values()))
    counts = [
        f"{lane} {n}" for lane in lanes if lane in all_lanes([first]) and (n := num_examples(first, lane)) is not None
    ]
    if counts and len(counts) <= 5:
        parts.insert(min(2, len(parts)), f"n: {', '.join(counts)}")
    return " · ".join(parts)


def _nice_step(raw: float) -> float:
    power = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * power >= raw * (1 - 1e-9))


def log_ticks(low: float, high: float) -> list[float]:
    """Return ticks of a logarithmic range: decades, or finer where there are fewer than four of them; at most about seven."""
    for factors in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0)):
        decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
        ticks = [factor * 10.0**k for k in decades for factor in factors if low <= factor * 10.0**k <= high]
        if len(ticks) >= 4:
            break
    return ticks[:: max(1, len(ticks) // 7)]
