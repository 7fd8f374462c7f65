"""Spectra of any number of lanes as one result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from landscape.memory import available_memory
from landscape.randomness import stream
from landscape.results import Journal, savable, validate, versions
from landscape.risk import ClassRisk, GroupAverage, LaneChoice, Lanes, lanes_of
from landscape.risk.arithmetic import precise_arithmetic
from landscape.risk.workers import FEWEST_NUMBERS
from landscape.spectrum.assembly import assemble
from landscape.spectrum.ends import Extremes
from landscape.spectrum.lane import Directions, find_extremes, measure_wave
from landscape.spectrum.options import SpectrumOptions
from landscape.spectrum.sampling import LEVEL, exact_traces

Progress = Callable[[int, int, str], None]

# Lanes of at most this many examples advance together, so many of them at most.
TINY_LANE = 8
MOST_LANES = 128
# The steps that an extreme run usually takes, for planning the memory.
TYPICAL_RUN = 60

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


@savable
@precise_arithmetic()
def measure_spectrum(
    risk: ClassRisk,
    lanes: LaneChoice | None = None,
    *,
    options: SpectrumOptions | None = None,
    seed: int = 0,
    group_average: GroupAverage = "examples",
    journal: Journal | None = None,
    progress: Progress | None = None,
    warm: Directions | None = None,
    directions: dict[str, tuple[Tensor, Tensor]] | None = None,
) -> xr.Dataset:
    r"""Measure the Hessian spectrum of each lane: density, both extremes, trace, negative energy, verdict.

    For every lane one Lanczos run from a random start goes on until both extremes have converged; those of its Ritz
    pairs that stand for eigenvalues of their own are deflated as atoms, and ``num_probes`` further runs in their
    complement give the density. Negative energy :math:`\mathrm{tr}(H_-)/\mathrm{tr}|H|`, thresholded negative mass and the
    trace come from raw quadratures, with confidence intervals; the trace of a piecewise linear network is exact. Lanes
    advance together, as many as the memory holds.

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
        Called as ``progress(done, total, text)`` after each wave of lanes.
    warm
        Extreme vectors by lane name from a nearby point (the ``directions`` of another checkpoint): they start the
        extreme runs; never the density's probes.
    directions
        A dictionary that receives ``{lane: (v_min, v_max)}``.

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
    blocks: dict[int, dict[str, np.ndarray]] = {}
    for index, name in enumerate(chosen.names):
        stored = journal.stored(_key(name)) if journal is not None else None
        if stored is not None:
            blocks[index] = stored
    keep_vectors = _vectors_fit(risk, len(chosen))
    traces = exact_traces(risk, chosen.weights, settings) if len(blocks) < len(chosen) else None
    for wave in plan_waves(risk, chosen, range(len(chosen)), settings):
        if all(index in blocks for index in wave):
            continue  # a wave that was cut short is computed as a whole: its last bits depend on its members
        names = [chosen.names[index] for index in wave]
        known = [traces[index] for index in wave] if traces is not None else None
        records = measure_wave(
            risk, chosen.weights[wave], names=names, options=settings, seed=seed, warm=warm, traces=known
        )
        for index, name, record in zip(wave, names, records):
            if index in blocks:
                continue
            if not keep_vectors:
                del record["v_min"], record["v_max"]
            blocks[index] = journal.store(_key(name), record) if journal is not None else record
        if progress is not None:
            progress(len(blocks), len(chosen), f"spectrum of {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}")
    ordered = [blocks[index] for index in range(len(chosen))]
    if directions is not None and keep_vectors:
        directions |= {
            n: (torch.as_tensor(b["v_min"]), torch.as_tensor(b["v_max"])) for n, b in zip(chosen.names, ordered)
        }
    dataset = assemble(risk, chosen, ordered)
    for name, unit in UNITS.items():
        dataset[name].attrs["units"] = unit
    dataset.attrs = {
        **risk.attributes,
        "kind": "spectrum",
        "seed": seed,
        "group_average": group_average,
        "normalization": "none: mean loss per lane, curvature per squared weight",
        "lower_bound_probability": 1 - settings.failure_probability,
        "interval_level": LEVEL,
        "num_parameters": len(risk.theta),
        "versions": versions(),
        **{f"option_{key}": value for key, value in asdict(settings).items()},
    }
    return validate("spectrum", dataset)


def _key(name: str) -> str:
    return f"spectrum/lane={name}"


def plan_waves(risk: ClassRisk, lanes: Lanes, todo: Sequence[int], options: SpectrumOptions) -> list[list[int]]:
    """Cut lanes into waves that advance together.

    Lanes of a few examples share their products (:data:`TINY_LANE`): as many as have their graphs and bases in memory
    at once. Larger ones advance side by side, one per core of a CPU, if their inputs are worth it; what is left is a wave
    of its own, kept as soon as it is done.
    """
    theta = risk.theta
    tiny = [index for index in todo if hasattr(risk, "per_example") and lanes.num_examples[index] <= TINY_LANE]
    graph_bytes = getattr(risk, "product_bytes", None)
    graphs = graph_bytes(lanes.weights) if graph_bytes is not None else [0] * len(lanes)
    vectors = min(options.longest_run, TYPICAL_RUN) + options.num_probes * (options.num_steps + 2)
    basis = vectors * theta.numel() * theta.element_size()
    room = available_memory(theta.device) // 3
    graph_room = getattr(risk, "memory_budget", room)
    numbers = getattr(risk, "inputs_per_example", 0)
    cores = torch.get_num_threads() if theta.device.type == "cpu" else 1
    waves: list[list[int]] = []
    used = {"graph": 0, "basis": 0}
    for kind, limit in ((True, MOST_LANES), (False, cores)):
        group: list[int] = []
        for index in todo:
            if (index in tiny) != kind:
                continue
            alone = not kind and lanes.num_examples[index] * numbers < FEWEST_NUMBERS
            fits = used["graph"] + graphs[index] <= graph_room and used["basis"] + basis <= room
            if not group or not fits or alone or len(group) >= limit:
                group = []
                waves.append(group)
                used = {"graph": 0, "basis": 0}
            group.append(index)
            used = {"graph": used["graph"] + graphs[index], "basis": used["basis"] + basis}
    return sorted(waves)


def _vectors_fit(risk: ClassRisk, num_lanes: int) -> bool:
    theta = risk.theta
    return 2 * num_lanes * theta.numel() * theta.element_size() <= available_memory(torch.device("cpu")) // 4


@precise_arithmetic()
def extreme_directions(
    risk: ClassRisk, lane: str | int, *, options: SpectrumOptions | None = None, seed: int = 0
) -> Extremes:
    """Return the extreme eigenpairs of one lane: the axes of an eigen-plane.

    The same start vector as in :func:`measure_spectrum` with the same seed, hence the same vectors.
    """
    chosen = lanes_of(risk, lane)
    generator = stream(seed, f"spectrum/{chosen.names[0]}/extremes")
    return find_extremes(risk, chosen.weights[0], options or SpectrumOptions(), generator)
