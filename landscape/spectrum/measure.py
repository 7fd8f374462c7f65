"""Spectra of any number of lanes as one result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import xarray as xr

from landscape.randomness import stream
from landscape.results import Journal, keep_block, validate, versions
from landscape.risk import ClassRisk, GroupAverage, LaneChoice, lanes_of
from landscape.spectrum.lane import Extremes, SpectrumOptions, find_extremes, measure_lane

Progress = Callable[[int, int, str], None]

UNITS = {
    "ritz_value": "loss per squared weight",
    "lambda_min": "loss per squared weight",
    "lambda_max": "loss per squared weight",
    "trace": "loss per squared weight",
    "negative_energy": "share of tr|H|, between 0 and 1",
    "gradient_norm": "loss per weight",
    "crossover_radius": "weight units (Euclidean distance)",
    "quadratic_radius": "weight units (Euclidean distance)",
    "loss": "nats per example",
}


def measure_spectrum(
    risk: ClassRisk,
    lanes: LaneChoice | None = None,
    *,
    options: SpectrumOptions | None = None,
    seed: int = 0,
    group_average: GroupAverage = "examples",
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    r"""Measure the Hessian spectrum of each lane: density, both extremes, trace, negative energy, verdict.

    For every lane one Lanczos run from a random start goes on until both extremes have converged; its converged Ritz
    pairs are deflated as exact atoms, and ``num_probes`` further runs in their complement give the density. The trace
    and the negative energy :math:`\mathrm{tr}(H_-)/\mathrm{tr}|H|` are means over probes of raw quadratures with
    standard errors.

    Parameters
    ----------
    risk
        The class losses and the point under study.
    lanes
        Classes, groups, ``"all"``, or a mapping of mixtures; None for every class, every group and the whole.
    options
        Cost and thresholds.
    seed
        Root seed of the probes; streams are named by lane and probe.
    group_average
        ``"examples"`` pools a group's examples, ``"classes"`` weighs its classes equally.
    journal
        Where finished lanes are kept, so that a killed run goes on after the last of them.
    progress
        Called as ``progress(done, total, text)`` after each lane.

    Returns
    -------
    xarray.Dataset
        With dimensions lane, probe, step; the variables are listed in :data:`landscape.results.SCHEMA`.

    Raises
    ------
    LandscapeError
        For an unknown or empty lane, or a product that is not finite.

    Examples
    --------
    >>> import torch
    >>> from landscape import AnalyticRisk
    >>> saddle = AnalyticRisk(lambda x: (x[0] ** 2 - x[1] ** 2)[None], torch.zeros(2, dtype=torch.float64))
    >>> result = measure_spectrum(saddle, "all")
    >>> round(float(result.lambda_min[0]), 9), str(result.verdict[0].item())
    (-2.0, 'saddle')

    Notes
    -----
    Stochastic Lanczos quadrature: Ubaru, Chen and Saad 2017. It differs from the released per-class analysis of
    Rangwani et al. (NeurIPS 2022): 1. the data are fixed, not augmented anew at every product; 2. the basis is
    orthogonalised twice and breakdown is recognised; 3. several probes with standard errors instead of one; 4. the
    statistics come from raw nodes and weights, not from a smoothed curve.
    """
    chosen = lanes_of(risk, lanes, group_average=group_average)
    settings = options or SpectrumOptions()
    blocks = []
    for index, name in enumerate(chosen.names):
        blocks.append(
            keep_block(
                journal,
                f"spectrum/lane={name}",
                lambda row=chosen.weights[index], name=name: measure_lane(risk, row, settings, seed=seed, name=name),
            )
        )
        if progress is not None:
            progress(index + 1, len(chosen), f"spectrum of {name}")
    dataset = _assemble(blocks)
    dataset["num_examples"] = ("lane", np.asarray(chosen.num_examples))
    dataset = dataset.assign_coords(
        lane=list(chosen.names), lane_kind=("lane", list(chosen.kinds)), lane_group=("lane", list(chosen.groups))
    )
    for name, unit in UNITS.items():
        dataset[name].attrs["units"] = unit
    dataset.attrs = {
        **risk.attributes,
        "kind": "spectrum",
        "seed": seed,
        "group_average": group_average,
        "normalization": "none: mean loss per lane, curvature per squared weight",
        "lower_bound_probability": 1 - settings.failure_probability,
        "num_parameters": len(risk.theta),
        "versions": versions(),
        **{f"option_{key}": value for key, value in asdict(settings).items()},
    }
    return validate("spectrum", dataset)


def _assemble(blocks: list[dict[str, np.ndarray]]) -> xr.Dataset:
    steps = max(block["ritz_value"].shape[1] for block in blocks)
    variables: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
    for key in blocks[0]:
        if key.startswith("ritz_"):
            padded = [np.pad(b[key], ((0, 0), (0, steps - b[key].shape[1])), constant_values=np.nan) for b in blocks]
            variables[key] = (("lane", "probe", "step"), np.stack(padded))
        else:
            variables[key] = (("lane",), np.array([b[key].item() for b in blocks]))
    return xr.Dataset(variables)


def extreme_directions(
    risk: ClassRisk, lane: str | int, *, options: SpectrumOptions | None = None, seed: int = 0
) -> Extremes:
    """Return the extreme eigenpairs of one lane: the axes of an eigen-plane.

    The same start vector as in :func:`measure_spectrum` with the same seed, hence the same vectors.
    """
    chosen = lanes_of(risk, lane)
    generator = stream(seed, f"spectrum/{chosen.names[0]}/extremes")
    return find_extremes(risk, chosen.weights[0], options or SpectrumOptions(), generator)
