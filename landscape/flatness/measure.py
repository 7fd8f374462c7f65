"""All measures of flatness of every lane in one Dataset, and what they will cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict

import numpy as np
import torch
import xarray as xr

from landscape.errors import LandscapeError
from landscape.flatness.catalogue import MEASURES, Measure, choose_measures
from landscape.flatness.options import FlatnessOptions
from landscape.flatness.study import Study
from landscape.perturbation import lane_means
from landscape.results import Journal, savable, validate, versions
from landscape.risk import ClassRisk, GroupAverage, LaneChoice, Lanes, lanes_of
from landscape.risk.arithmetic import precise_arithmetic
from landscape.risk.augmented import require_fixed
from landscape.risk.points import class_losses

Progress = Callable[[int, int, str], None]

# Evaluations of a walk outwards for fourteen lanes and one rise, about: 12 radii scanned, the rest to narrow the brackets.
WALK = 30


@savable
@precise_arithmetic()
def measure_flatness(
    risk: ClassRisk,
    lanes: LaneChoice | None = None,
    *,
    options: FlatnessOptions | None = None,
    seed: int = 0,
    group_average: GroupAverage = "examples",
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    r"""Measure the flatness of every lane in all the ways of :data:`landscape.flatness.MEASURES`.

    Parameters
    ----------
    risk, lanes, seed, group_average, journal, progress
        As in :func:`landscape.spectrum.measure_spectrum`; every measure is of the risk's own objective, but for
        ``relative_flatness`` and the logit-normalised ones, which are of plain cross-entropy.
    options
        Lengths, effort, and which measures.

    Returns
    -------
    xarray.Dataset
        A variable per measure (lane), with ``<name>_stderr`` where it is an estimate; their attributes hold ``units``,
        ``formula``, ``source``, ``critique`` and ``exactness``, and ``missing`` where a measure does not exist for this risk
        and its values are NaN. ``loss`` (lane), plain cross-entropy for a classifier, ``own_loss`` where the objective is
        another one; ``gradient_norm``; ``num_examples``; ``m_sharpness_batch_size``, ``m_sharpness_num_batches``.

    Raises
    ------
    LandscapeError
        For an unknown measure or lane, inputs that are augmented anew at every evaluation, or BatchNorm statistics that
        are not frozen.

    Examples
    --------
    >>> from landscape import AnalyticRisk
    >>> risk = AnalyticRisk(lambda x: torch.stack([x @ x, 2 * (x @ x)]) / 2, torch.ones(4, dtype=torch.float64))
    >>> found = measure_flatness(risk, "classes", options=FlatnessOptions(rho=0.5))
    >>> [round(float(v), 9) for v in found.worst_case_increase]  # rho |x| + rho^2 / 2, and twice that
    [1.125, 2.25]
    """
    require_fixed(risk, "a flatness analysis")
    if not risk.is_additive:
        raise LandscapeError(
            "flatness needs lanes that are means of their classes: use batchnorm 'frozen', not 'batch'"
        )
    chosen = lanes_of(risk, lanes, group_average=group_average)
    settings = options or FlatnessOptions()
    measures = choose_measures(settings.measures)
    total, done = _num_blocks(measures.values(), settings, chosen), 0

    def tick(name: str) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(min(done, total), total, f"flatness, {name}")

    study = Study(risk, chosen, settings, seed, journal, tick)
    dataset = xr.Dataset(coords={"lane": list(chosen.names)})
    for name, losses in study.block("loss", lambda: _losses(study)).items():
        dataset[name] = ("lane", losses, {"units": "nats per example"})
    dataset["num_examples"] = ("lane", np.asarray(chosen.num_examples))
    for name, measure in {"gradient_norm": MEASURES["gradient_norm"], **measures}.items():
        _add(dataset, name, measure, study)
    dataset = dataset.assign_coords(lane_kind=("lane", list(chosen.kinds)), lane_group=("lane", list(chosen.groups)))
    dataset.attrs = {
        **risk.attributes,
        "kind": "flatness",
        "seed": seed,
        "group_average": group_average,
        "normalization": "stated by each measure",
        "theta_norm": float(torch.linalg.vector_norm(risk.theta.double())),
        "versions": versions(),
        **{f"option_{key}": value for key, value in asdict(settings).items()},
    }
    return validate("flatness", dataset)


def _losses(study: Study) -> dict[str, np.ndarray]:
    values = class_losses(study.risk, study.risk.theta)
    return {name: lane_means(study.lanes, losses) for name, losses in values.items()}


def _add(dataset: xr.Dataset, name: str, measure: Measure, study: Study) -> None:
    found = measure.function(study)
    about = {
        "units": measure.units,
        "formula": measure.formula,
        "source": measure.source,
        "critique": measure.critique,
        "exactness": measure.exactness,
        **found.attributes,
    }
    dataset[name] = ("lane", found.value, about)
    if found.stderr is not None:
        dataset[f"{name}_stderr"] = ("lane", found.stderr, {"units": measure.units})
    for key, values in found.more.items():
        is_end = key in (f"{name}_low", f"{name}_high")
        dataset[key] = ("lane", values, {"units": measure.units if is_end else "count"})


def _num_blocks(measures: Iterable[Measure], options: FlatnessOptions, lanes: Lanes) -> int:
    """Return how many blocks the measures need; those that share theirs count once."""
    families = {"loss": "pass", "gradient": "pass", **{measure.shares: measure.family for measure in measures}}
    each = {"average": 1 + options.num_pairs, "worst case": len(lanes), "batches": len(lanes), "pass": 1, "radius": 1}
    return sum(each[family] for family in families.values())


def estimate_flatness(
    risk: ClassRisk,
    lanes: LaneChoice | None = None,
    *,
    options: FlatnessOptions | None = None,
    group_average: GroupAverage = "examples",
) -> tuple[float, int]:
    """Return the expected seconds and bytes of :func:`measure_flatness`.

    One evaluation and one ascent step of every lane are timed.

    Parameters
    ----------
    risk, lanes, options, group_average
        As for the measurement.

    Returns
    -------
    tuple[float, int]
        Seconds on this machine, and bytes beyond the model.
    """
    require_fixed(risk, "a flatness analysis")
    chosen = lanes_of(risk, lanes, group_average=group_average)
    settings = options or FlatnessOptions()
    theta, rows = risk.theta, chosen.weights
    supports = [torch.nonzero(row)[:, 0].tolist() for row in rows]
    risk.gradients(theta, rows[:1])  # the first call may compile and allocate
    evaluation = _seconds(lambda: risk.losses(theta))
    step = _seconds(
        lambda: [(risk.gradients(theta, row[None]), risk.losses(theta, c)) for row, c in zip(rows, supports)]
    )
    num = settings.max_batches * (settings.batch_size or int(risk.class_counts[risk.class_counts > 0].min()))
    share = sum(min(n, num) for n in chosen.num_examples) / sum(chosen.num_examples)
    seconds: Mapping[str, float] = {
        "average": (1 + 2 * settings.num_pairs) * evaluation,
        "worst case": settings.ascent_steps * step,
        "batches": settings.ascent_steps * step * share,
        "pass": step,
        "radius": 2 * settings.num_pairs * WALK * evaluation,
    }
    families = {measure.shares: measure.family for measure in choose_measures(settings.measures).values()}
    families["gradient"] = "pass"
    graph = getattr(risk, "_bytes_per_example", 0) * 2 * min(max(chosen.num_examples), getattr(risk, "chunk_size", 1))
    vectors = 8 * len(risk.theta) * (4 + min(len(chosen), 32))
    return sum(seconds[family] for family in families.values()), graph + vectors


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
