"""Ways out: what following each lane's most negative curvature does to its own loss and to every other lane's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.randomness import stream
from landscape.results import Journal, keep_block, savable, versions
from landscape.risk import ClassRisk, GroupAverage, LaneChoice, Lanes, lanes_of
from landscape.risk.arithmetic import precise_arithmetic
from landscape.risk.augmented import require_fixed
from landscape.risk.points import Values, Walk, walk_of
from landscape.spectrum import SpectrumOptions, find_extremes
from landscape.spectrum.rounding import loss_noise

Progress = Callable[[int, int, str], None]

# Four lengths per decade, from a ten-thousandth to a tenth of the norm of the weights.
DEFAULT_LENGTHS = 10.0 ** np.arange(-3.0, 0.25, 0.25)
# A step is affordable where no group, nor the whole, loses more than this share of what the followed lane gains.
AFFORDABLE = 0.1
# The largest of some fifty differences of two roundings lies below this many standard deviations of one.
RESOLUTION = 5.0
_ALONG_V = ("loss", "increase", "increase_stderr", "own_increase")
# A step's unit, as a share of the norm of the weights: that of the eigen-planes.
UNIT = 0.1


@savable
@precise_arithmetic()
def measure_escape(
    risk: ClassRisk,
    lanes: LaneChoice | None = "classes",
    *,
    x: ArrayLike | None = None,
    directions: Mapping[str, Tensor] | None = None,
    options: SpectrumOptions | None = None,
    seed: int = 0,
    group_average: GroupAverage = "examples",
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    r"""Measure, along both signs of each lane's v_min, the loss of that lane and of every class, group and the whole.

    .. math:: \Delta_{l \to m}(t) = L_m(\theta + t u v_l) - L_m(\theta), \qquad u = 0.1\,\|\theta\|_2

    with v_l the unit eigenvector of lane l's smallest Hessian eigenvalue, its sign chosen so that
    :math:`g_l \cdot v_l \le 0`: positive t goes down lane l's own slope. The same lengths are walked along
    :math:`-g_l / \|g_l\|`, what plain gradient descent on that lane would do.

    Parameters
    ----------
    risk, seed, group_average, journal, progress
        As in :func:`landscape.spectrum.measure_spectrum`, whose v_min is taken for the same seed; a journal keeps each
        lane's direction and its walk.
    lanes
        Whose directions are followed. The losses of every class with examples, every group and the whole are read at each
        step, from one forward pass.
    x
        Increasing positive lengths, in units of u (1 is a tenth of the weights' norm; 1 weight unit where that is 0);
        by default 13 from 0.001 to 1, four per decade. Each is walked in both directions.
    directions
        Vectors v_min (n,) by lane that are known already (what ``measure_spectrum(directions=...)`` keeps): for these lanes
        nothing is searched, and one Hessian product gives :math:`v^T H v` and the residual.
    options
        Effort of the search for the other lanes' v_min.

    Returns
    -------
    xarray.Dataset
        ``loss``, ``increase``, ``increase_stderr`` (lane, step, affected_lane): plain cross-entropy for a classifier, in
        nats per example, an exact evaluation over the stated examples; the standard error is that of a paired difference
        over images with the classes as strata, :math:`\sqrt{\sum_c w_c^2 s_c^2 / n_c}`, NaN where a class has one image
        or there are no images. ``own_increase`` (the same dims) where the training objective is another loss: v_min and the
        gradient belong to that objective. ``gradient_increase`` (lane, length, affected_lane) along -gradient.
        ``best_decrease``, ``best_distance`` (lane): the largest decrease of the lane's own loss among the steps walked and
        its signed step, both 0 where none decreases it by more than ``resolution`` (lane), the rounding of a loss: a lower
        bound, known to the spacing of the steps.
        ``affordable_decrease``, ``affordable_distance`` (lane): the same among the steps at which no group's loss, nor the
        whole's, rises by more than a tenth of the decrease (without groups: no other class's). Far along any direction a
        network says one class to everything: the best step alone may be of that kind.
        ``increase_at_best``, ``increase_at_affordable``, each with ``..._stderr``, and ``gradient_increase_at_best``
        (lane, affected_lane): what those steps do to all lanes, and -gradient at the best one's length.
        ``gradient_best_decrease``, ``gradient_best_length`` (lane): the best of
        -gradient. ``lambda_min`` with ``lambda_min_residual`` :math:`= \|Hv - \lambda v\|`, ``gradient_norm``,
        ``slope_along_v`` (lane); ``loss_at_weights`` (affected_lane).

    Raises
    ------
    LandscapeError
        For bad lengths, an unknown or empty lane, a product that is not finite, or inputs that are augmented anew.

    Examples
    --------
    >>> from landscape import AnalyticRisk
    >>> saddle = AnalyticRisk(lambda t: torch.stack([t[0] ** 2 - t[1] ** 2 + t[1] ** 4, t[1] ** 2]), torch.zeros(2).double())
    >>> found = measure_escape(saddle, "0", x=[0.5, 0.75, 1.0])
    >>> round(float(found.best_decrease[0]), 6), abs(float(found.best_distance[0]))  # 0.75^2 - 0.75^4, the best of three
    (0.246094, 0.75)
    >>> round(float(found.increase_at_best.sel(affected_lane="1")[0]), 6)  # what it costs the other class: 0.75^2
    0.5625

    Notes
    -----
    The frame is that of class Hessians: the Hessian of the whole loss is the mean of its classes', so a way out for one
    class need not be one for the whole.
    """
    require_fixed(risk, "an escape")
    followed = lanes_of(risk, lanes, group_average=group_average)
    affected = _affected(risk, followed, group_average)
    lengths = _lengths(x)
    effort = options or SpectrumOptions()
    norm = float(torch.linalg.vector_norm(risk.theta.double()))
    unit = UNIT * norm or 1.0
    walk = walk_of(risk, affected)
    known = _known(risk, directions or {})
    blocks = []
    for index, name in enumerate(followed.names):
        row = followed.weights[index]

        def direction(row: Tensor = row, name: str = name) -> dict[str, np.ndarray]:
            if name in known:
                return _as_given(risk, row, known[name])
            return _direction(risk, row, name, effort, seed)

        found = keep_block(journal, f"escape/lane={name}/v_min", direction)
        walked = keep_block(
            journal,
            f"escape/lane={name}/walk",
            lambda found=found: _walk(risk, walk, found, unit * lengths),
        )
        rounding = keep_block(
            journal,
            f"escape/lane={name}/rounding",
            lambda found=found, name=name: {
                "loss_noise": _noise(risk, walk, found["v_min"], affected.names.index(name))
            },
        )
        blocks.append({**found, **walked, **rounding})
        if progress is not None:
            progress(index + 1, len(followed), f"escape of {name}")
    dataset = _assembled(followed, affected, blocks, lengths)
    centre = walk.at_weights()["loss"].cpu().numpy()
    dataset["loss_at_weights"] = ("affected_lane", centre)
    dataset["resolution"] = ("lane", RESOLUTION * np.array([float(block["loss_noise"]) for block in blocks]))
    for key, values in _best(dataset).items():
        dataset[key] = (("lane",) if values.ndim == 1 else ("lane", "affected_lane"), values)
    dataset.attrs = {
        **risk.attributes,
        "kind": "escape",
        "seed": seed,
        "group_average": group_average,
        "normalization": "unit eigenvectors, every parameter moved",
        "theta_norm": norm,
        "unit_length": unit,
        "units": f"nats per example; lengths in units of {unit:.4g}, a tenth of |theta|",
        "exactness": "every loss is a full evaluation over the stated examples; the best step is the best of those walked",
        "versions": versions(),
    }
    return dataset


def _lengths(x: ArrayLike | None) -> np.ndarray:
    try:
        lengths = DEFAULT_LENGTHS if x is None else np.asarray(x, dtype=np.float64)
    except (TypeError, ValueError):
        lengths = np.empty(0)
    is_good = lengths.ndim == 1 and lengths.size > 0 and bool(np.isfinite(lengths).all())
    if not is_good or lengths[0] <= 0 or not (np.diff(lengths) > 0).all():
        raise LandscapeError(f"x: expected increasing positive lengths, each walked in both directions, got {x!r}")
    return lengths


def _affected(risk: ClassRisk, followed: Lanes, group_average: GroupAverage) -> Lanes:
    """Return every class with examples, every group, the whole, and what is followed beside these (a mixture)."""
    counts = risk.class_counts.cpu()
    present = [name for name, count in zip(risk.class_names, counts.tolist()) if count > 0]
    every = lanes_of(risk, [*present, "groups", "all"], group_average=group_average)
    more = [k for k, name in enumerate(followed.names) if name not in every.names]
    return Lanes(
        names=(*every.names, *(followed.names[k] for k in more)),
        kinds=(*every.kinds, *(followed.kinds[k] for k in more)),
        groups=(*every.groups, *(followed.groups[k] for k in more)),
        weights=torch.cat([every.weights, followed.weights[more]]),
        num_examples=(*every.num_examples, *(followed.num_examples[k] for k in more)),
    )


def _direction(risk: ClassRisk, row: Tensor, name: str, options: SpectrumOptions, seed: int) -> dict[str, np.ndarray]:
    """Return a lane's v_min (n,), down its own slope, with what is known of it, and the lane's gradient (n,)."""
    # By weights, not by name: a mixture has no name to look up. The stream is the spectrum's, hence so is the vector.
    ends = find_extremes(risk, row, options, stream(seed, f"spectrum/{name}/extremes"), name=name)
    return _about(risk, row, ends.v_min.double(), float(ends.lambda_min), float(ends.residual_min))


def _as_given(risk: ClassRisk, row: Tensor, v: Tensor) -> dict[str, np.ndarray]:
    """Return the same of a vector that is known, from one product."""
    product = risk.hvps(risk.theta, row[None], v[None].to(risk.theta.dtype))[0].double()
    value = float(product @ v)
    return _about(risk, row, v, value, float(torch.linalg.vector_norm(product - value * v)))


def _about(risk: ClassRisk, row: Tensor, v: Tensor, value: float, residual: float) -> dict[str, np.ndarray]:
    gradient = risk.gradients(risk.theta, row[None])[0].double()
    v = v.to(gradient.device)
    slope = float(gradient @ v)
    return {
        "v_min": (-v if slope > 0 else v).cpu().numpy(),
        "gradient": gradient.cpu().numpy(),
        "row": row.numpy(),
        "lambda_min": np.asarray(value),
        "lambda_min_residual": np.asarray(residual),
        "gradient_norm": np.asarray(float(torch.linalg.vector_norm(gradient))),
        "slope_along_v": np.asarray(-abs(slope)),
    }


def _known(risk: ClassRisk, directions: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the given directions as unit vectors in float64."""
    found = {}
    for name, given in directions.items():
        v = torch.as_tensor(given).to(risk.theta.device, torch.float64)
        norm = float(torch.linalg.vector_norm(v))
        if v.shape != risk.theta.shape or not 0 < norm < float("inf"):
            raise LandscapeError(
                f"directions: expected a finite vector of shape {tuple(risk.theta.shape)} that is not zero for lane '{name}', "
                f"got shape {tuple(v.shape)}, norm {norm:.4g}"
            )
        found[name] = v / norm
    return found


def _noise(risk: ClassRisk, walk: Walk, v_min: np.ndarray, lane: int) -> np.ndarray:
    """Return the rounding of a lane's loss as it is walked."""
    direction = torch.as_tensor(v_min).to(risk.theta)
    return np.asarray(loss_noise(lambda theta: float(walk.at(theta)["loss"][lane]), risk.theta, direction))


def _walk(risk: ClassRisk, walk: Walk, found: dict[str, np.ndarray], lengths: np.ndarray) -> dict[str, np.ndarray]:
    """Return what the steps along +-v_min (2 K, from the farthest negative one) and -gradient (K) do to the lanes."""
    theta = risk.theta.double()
    v, gradient = (torch.as_tensor(found[key]).to(theta) for key in ("v_min", "gradient"))
    along_v = _steps(risk, walk, [(float(t), v) for t in (*-lengths[::-1], *lengths)])
    size = torch.linalg.vector_norm(gradient)
    down = -gradient / size if float(size) > 0 else None
    along_gradient = _steps(risk, walk, [(float(t), down) for t in lengths])
    return {**along_v, **{f"gradient_{key}": values for key, values in along_gradient.items() if key != "loss"}}


def _steps(risk: ClassRisk, walk: Walk, steps: Sequence[tuple[float, Tensor | None]]) -> dict[str, np.ndarray]:
    """Return ``loss``, ``increase``, ``increase_stderr`` (steps, L); NaN where there is no direction to follow."""
    here = walk.at_weights()
    nothing = torch.full_like(here["loss"], torch.nan)
    out: dict[str, list[Tensor]] = {}
    for length, direction in steps:
        there: Values = {}
        if direction is not None:
            there = walk.at((risk.theta.double() + length * direction).to(risk.theta.dtype))
        loss = there.get("loss", nothing)
        row = {"loss": loss, "increase": loss - here["loss"], "increase_stderr": there.get("increase_stderr", nothing)}
        if "own_loss" in here:
            row["own_increase"] = there.get("own_loss", nothing) - here["own_loss"]
        for name, values in row.items():
            out.setdefault(name, []).append(values)
    return {name: torch.stack(values).cpu().numpy() for name, values in out.items()}


def _assembled(
    followed: Lanes, affected: Lanes, blocks: Sequence[dict[str, np.ndarray]], lengths: np.ndarray
) -> xr.Dataset:
    walks = ("lane", "step", "affected_lane")
    dataset = xr.Dataset(
        {key: (walks, np.stack([b[key] for b in blocks])) for key in _ALONG_V if key in blocks[0]},
        coords={
            "lane": list(followed.names),
            "step": np.concatenate([-lengths[::-1], lengths]),
            "length": lengths,
            "affected_lane": list(affected.names),
            "lane_kind": ("lane", list(followed.kinds)),
            "lane_group": ("lane", list(followed.groups)),
            "affected_kind": ("affected_lane", list(affected.kinds)),
            "affected_group": ("affected_lane", list(affected.groups)),
        },
    )
    for key in (f"gradient_{key}" for key in _ALONG_V):
        if key in blocks[0]:
            dataset[key] = (("lane", "length", "affected_lane"), np.stack([b[key] for b in blocks]))
    for key in ("lambda_min", "lambda_min_residual", "gradient_norm", "slope_along_v"):
        dataset[key] = ("lane", np.array([float(block[key]) for block in blocks]))
    dataset["num_examples"] = ("lane", np.asarray(followed.num_examples))
    dataset["affected_num_examples"] = ("affected_lane", np.asarray(affected.num_examples))
    for key in ("step", "length"):
        dataset[key].attrs["units"] = "tenths of the norm of the weights"
    return dataset


def _best(dataset: xr.Dataset) -> dict[str, np.ndarray]:
    """Return each lane's best step, and its best affordable one, and what they do to all lanes; steps not finite lose."""
    steps, lengths = dataset["step"].values, dataset["length"].values
    names, kinds = dataset["affected_lane"].values.tolist(), dataset["affected_kind"].values.tolist()
    rows: dict[str, list[np.ndarray]] = {}

    def keep(key: str, value: float | np.ndarray) -> None:
        rows.setdefault(key, []).append(np.asarray(value, dtype=np.float64))

    for lane in dataset["lane"].values.tolist():
        one = dataset.sel(lane=lane)
        own = names.index(lane)
        resolution = float(one["resolution"])
        increase, stderr, nothing = one["increase"].values, one["increase_stderr"].values, np.zeros(len(names))
        asked = [m for m, kind in enumerate(kinds) if kind in ("group", "all")]
        if "group" not in kinds:
            asked = [m for m in range(len(names)) if m != own]
        cost = increase[:, asked].max(1, initial=-np.inf)
        paid = np.where(cost <= AFFORDABLE * -increase[:, own], increase[:, own], np.inf)
        k = _lowest(increase[:, own], resolution)
        for which, at in (("best", k), ("affordable", _lowest(paid, resolution))):
            keep(f"{which}_decrease", 0.0 if at is None else -increase[at, own])
            keep(f"{which}_distance", 0.0 if at is None else steps[at])
            keep(f"increase_at_{which}", nothing if at is None else increase[at])
            keep(f"increase_at_{which}_stderr", nothing if at is None else stderr[at])
        at = None if k is None else int(np.argmin(np.abs(lengths - abs(steps[k]))))
        keep("gradient_increase_at_best", nothing if at is None else one["gradient_increase"].values[at])
        m = _lowest(one["gradient_increase"].values[:, own], resolution)
        keep("gradient_best_decrease", 0.0 if m is None else -one["gradient_increase"].values[m, own])
        keep("gradient_best_length", 0.0 if m is None else lengths[m])
    return {key: np.stack(values) for key, values in rows.items()}


def _lowest(increase: np.ndarray, resolution: float) -> int | None:
    """Return where a loss falls most, None where it falls nowhere by more than the rounding of a loss."""
    finite = np.where(np.isfinite(increase), increase, np.inf)
    best = int(np.argmin(finite))
    return best if finite[best] < -resolution else None
