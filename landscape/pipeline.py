"""The stages of the main job, one after the other, each of which can be found done: train, analyse, draw, report."""

from __future__ import annotations

import datetime
import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr

from landscape.diagnosis import measure_accuracy, measure_everything, summarise
from landscape.drawing import Drawing
from landscape.errors import LARGEST_SEED, LandscapeError, require_whole
from landscape.estimation import estimate_cost
from landscape.files import inert, writing_atomically
from landscape.loading import CheckpointSource, LoadedCheckpoint, SplitName, held_out_risk, load_checkpoint, risk_of
from landscape.plan import Plan, capped, choose_plan
from landscape.report import write_report
from landscape.results import Journal, load_results, save_results, versions
from landscape.risk import GroupAverage, LaneChoice, ModelRisk
from landscape.risk.augmented import RedrawnRisk, require_fixed
from landscape.risk.lanes import require_group_average
from landscape.threads import suitable_threads
from landscape.training import Progress, TrainSpec, estimate_training, read_history, train, untrained_checkpoint

Announce = Callable[[str], None]

logger = logging.getLogger(__name__)

RESULTS = "results.nc"
SUMMARY = "summary.csv"
REPORT = "report.html"
FIGURES = "figures"


@dataclass(frozen=True)
class AnalysisSpec:
    """How a checkpoint is analysed.

    Attributes
    ----------
    preset
        ``quick``, ``standard`` or ``full``.
    lanes, group_average, seed
        As in :func:`landscape.spectrum.measure_spectrum`.
    max_per_class
        Examples of each class; None takes the preset's number (all of them for small images).
    """

    preset: str = "standard"
    lanes: LaneChoice | None = None
    group_average: GroupAverage = "examples"
    seed: int = 0
    max_per_class: int | None = None

    def __post_init__(self) -> None:
        choose_plan(self.preset)
        require_group_average(self.group_average)
        if self.max_per_class is not None:
            require_whole("--max-per-class", self.max_per_class, 1)
        require_whole("seed", self.seed, 0, LARGEST_SEED)


@dataclass(frozen=True)
class RunSpec:
    """The main job: one data set, one network, several optimizers, all analyses."""

    train: TrainSpec
    optimizers: tuple[str, ...]
    analysis: AnalysisSpec = field(default_factory=AnalysisSpec)
    split: SplitName = "train"
    objective: str = "own"
    device: str = "auto"

    def __post_init__(self) -> None:
        CheckpointSource("", split=self.split, loss=self.objective)
        if not self.optimizers:
            raise LandscapeError("--optimizers: expected at least one name, such as sgd,sam")
        if len(set(self.optimizers)) != len(self.optimizers):
            raise LandscapeError(f"--optimizers: each name once, got {','.join(self.optimizers)}")
        for name in self.optimizers:
            self.train.with_optimizer(name)


@dataclass(frozen=True)
class Prepared:
    """A checkpoint ready for analysis: its network and data, its risk, the plan with its cap on examples."""

    loaded: LoadedCheckpoint
    source: CheckpointSource
    risk: ModelRisk | RedrawnRisk
    plan: Plan

    def threads(self) -> AbstractContextManager[None]:
        """Give as many CPU threads as the batches of the analysis deserve."""
        batch = min(int(self.risk.class_counts.sum()), self.risk.chunk_size)
        return suitable_threads(batch * self.risk.inputs_per_example)


def prepare(source: CheckpointSource, spec: AnalysisSpec) -> Prepared:
    """Load a checkpoint and cap its examples as the preset says."""
    loaded = load_checkpoint(source)
    images = loaded.dataset.test.images
    limit = source.max_per_class if source.max_per_class is not None else spec.max_per_class
    plan = capped(choose_plan(spec.preset), images.shape[2] * images.shape[3], limit)
    source = replace(source, max_per_class=plan.max_per_class)
    return Prepared(loaded, source, risk_of(loaded, source), plan)


def held_out_of(prepared: Prepared, spec: AnalysisSpec) -> ModelRisk | None:
    """Return the risk on the split that is not under study, None where the plan or the data leave it out."""
    if not prepared.plan.held_out:
        return None
    return held_out_risk(prepared.loaded, prepared.source, spec.lanes, group_average=spec.group_average)


def analyse(
    prepared: Prepared, out: str | Path, spec: AnalysisSpec, *, progress: Progress | None = None
) -> dict[str, xr.Dataset]:
    """Run every analysis of a checkpoint into ``out/results.nc``; return its groups.

    Finished blocks are kept in ``out/journal`` until the file is written: a killed run goes on where it stopped, and
    results that are already there for the same weights, data and settings are not computed again.
    """
    out = Path(out)
    risk = prepared.risk
    require_fixed(risk, "a complete analysis")
    held_out = held_out_of(prepared, spec)
    recipe = {**risk.attributes, "analysis": asdict(spec), "plan": asdict(prepared.plan), "versions": versions()}
    recipe["held_out"] = None if held_out is None else held_out.attributes
    journal = Journal(out / "journal", recipe)
    stored = _finished(out / RESULTS, journal.digest)
    if stored is not None:
        journal.clear()
        return stored
    start = time.perf_counter()
    with prepared.threads():
        groups = measure_everything(
            risk,
            spec.lanes,
            plan=prepared.plan,
            held_out=held_out,
            seed=spec.seed,
            group_average=spec.group_average,
            journal=journal,
            progress=progress,
        )
        _add_test_accuracy(groups["accuracy"], prepared, spec)
    for dataset in groups.values():
        dataset.attrs["recipe_digest"] = journal.digest
        dataset.attrs["preset"] = spec.preset
    groups["accuracy"].attrs["analysis_seconds"] = time.perf_counter() - start
    save_results(groups, out / RESULTS)
    journal.clear()
    return groups


def _finished(path: Path, digest: str) -> dict[str, xr.Dataset] | None:
    if not path.is_file():
        return None
    try:
        groups = groups_of(load_results(path))
    except LandscapeError:
        return None
    same = "accuracy" in groups and groups["accuracy"].attrs.get("recipe_digest") == digest
    return groups if same else None


def groups_of(tree: xr.DataTree) -> dict[str, xr.Dataset]:
    """Return the groups of a results file as Datasets by name."""
    return {str(name): node.to_dataset() for name, node in tree.children.items()}


def _add_test_accuracy(accuracy: xr.Dataset, prepared: Prepared, spec: AnalysisSpec) -> None:
    """Add accuracy and loss on the whole test split, the balanced one that the field reports.

    A test split of one's own may lack a class; that must not cost the analysis of the other split.
    """
    source = replace(prepared.source, split="test", max_per_class=None, augment="none")
    try:
        test = measure_accuracy(risk_of(prepared.loaded, source), spec.lanes, group_average=spec.group_average)
    except LandscapeError as error:
        logger.warning("test accuracy left out: %s", error)
        return
    for name in ("accuracy", "accuracy_stderr", "loss", "num_examples"):
        accuracy[f"test_{name}"] = ("lane", test[name].values)


def write_summary(groups: Mapping[str, xr.Dataset], out: str | Path) -> pd.DataFrame:
    """Write ``out/summary.csv``, one row per lane; return it."""
    table = summarise(groups)
    with writing_atomically(Path(out) / SUMMARY) as temporary:
        inert(table).to_csv(temporary)
    return table


def report(
    out: str | Path,
    results: Mapping[str, Mapping[str, xr.Dataset]],
    *,
    title: str,
    command: str,
    config: Mapping[str, Any],
    histories: Mapping[str, pd.DataFrame] | None = None,
    timings: Mapping[str, Any] | None = None,
    warnings: Sequence[str] = (),
) -> Path:
    """Write ``out/report.html`` about one or several checkpoints."""
    out = Path(out)
    trees = {name: xr.DataTree.from_dict(dict(groups)) for name, groups in results.items()}
    attributes = {name: groups["accuracy"].attrs for name, groups in results.items()}
    context = {
        "title": title,
        "description": _describe(next(iter(attributes.values()))),
        "created": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commands": [command],
        "config": config,
        "versions": versions(),
        "seeds": {name: a.get("seed", groups_seed(results[name])) for name, a in attributes.items()},
        "checkpoints": {name: a.get("checkpoint_sha256", "") for name, a in attributes.items()},
        "timings": dict(timings or {}),
        "warnings": list(warnings),
        "histories": dict(histories or {}),
    }
    return write_report(out / REPORT, trees, context)


def groups_seed(groups: Mapping[str, xr.Dataset]) -> int:
    """Return the root seed of a results file."""
    return int(groups["spectrum"].attrs.get("seed", 0))


def _describe(attributes: Mapping[str, Any]) -> str:
    limit = int(attributes.get("max_per_class", 0) or 0)
    which = f"the first {limit} images of each class" if limit else "all images"
    return (
        f"Data set {attributes.get('dataset', '?')}, {attributes.get('split', '?')} split, {which}; objective "
        f"{attributes.get('objective', '?')}; groups by rule {attributes.get('group_rule', '?')}."
    )


def figures(
    source: CheckpointSource,
    out: str | Path,
    spec: AnalysisSpec,
    *,
    command: str,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Analyse one checkpoint completely: results, summary, every figure, report; return the summary."""
    out = Path(out)
    prepared = prepare(source, spec)
    groups = analyse(prepared, out, spec, progress=progress)
    table = write_summary(groups, out)
    name = str(prepared.loaded.spec.get("optimizer") or Path(source.path).stem)
    config = {
        "source": {k: str(v) for k, v in asdict(prepared.source).items() if v is not None},
        "plan": asdict(prepared.plan),
    }
    with Drawing() as drawing:
        drawing.start(out / FIGURES, {name: out / RESULTS})
        report(
            out,
            {name: groups},
            title=f"Loss landscape of {Path(source.path).name}",
            command=command,
            config=config,
            timings={"analysis, seconds": groups["accuracy"].attrs.get("analysis_seconds", float("nan"))},
        )
    return table


def run_everything(
    spec: RunSpec,
    out: str | Path,
    *,
    command: str,
    announce: Announce | None = None,
    progress: Progress | None = None,
) -> dict[str, pd.DataFrame]:
    """Train with every optimizer, analyse each result, draw, and report; return the summaries by optimizer.

    Each stage that is found finished in ``out`` (same settings) is kept, so a killed run goes on where it stopped. An
    optimizer that fails does not take the others down: it is reported as a warning, and raised if none succeeds.
    """
    out = Path(out)
    results: dict[str, dict[str, xr.Dataset]] = {}
    tables: dict[str, pd.DataFrame] = {}
    warnings: list[str] = []
    tell = announce or logger.info
    with Drawing() as drawing:
        for number, name in enumerate(spec.optimizers, start=1):
            try:
                stage = f"[{number}/{len(spec.optimizers)}] {name}"
                results[name] = _train_and_analyse(replace(spec, optimizers=(name,)), out / name, stage, tell, progress)
                tables[name] = write_summary(results[name], out / name)
                drawing.start(out / name / FIGURES, {name: out / name / RESULTS})
            except LandscapeError as error:
                if len(spec.optimizers) == 1:
                    raise
                warnings.append(f"{name}: {error}")
                logger.warning("%s failed: %s", name, error)
        if not results:
            raise LandscapeError(f"no optimizer succeeded; {warnings[0]}")
        tell("drawing the figures and writing the report")
        combine(
            out,
            {name: out / name / RESULTS for name in results},
            results,
            drawing,
            histories={name: read_history(out / name) for name in results},
            title=f"{spec.train.dataset}: {len(results)} optimizers compared",
            command=command,
            config={"run": _plain(spec)},
            timings=_timings(out, results),
            warnings=warnings,
        )
    return tables


def _train_and_analyse(
    spec: RunSpec, folder: Path, stage: str, tell: Announce, progress: Progress | None
) -> dict[str, xr.Dataset]:
    """Train and analyse with the one optimizer of ``spec``."""
    tell(f"{stage}: training")
    run = spec.train.with_optimizer(spec.optimizers[0])
    path = train(run, folder, device=spec.device, resume=True, progress=progress)
    tell(f"{stage}: analysing")
    source = CheckpointSource(path, split=spec.split, loss=spec.objective, device=spec.device)
    return analyse(prepare(source, spec.analysis), folder, spec.analysis, progress=progress)


def estimate_run(spec: RunSpec) -> dict[str, tuple[float, int]]:
    """Return the expected {stage: (seconds, bytes)} of the main job, from timed steps on this machine.

    Every optimizer's training is timed by itself; the analysis of one network of this shape, with weights as
    initialised, stands for all of them.
    """
    stages = {}
    for name in spec.optimizers:
        stages[f"training with {name}"] = estimate_training(spec.train.with_optimizer(name), device=spec.device)
    with tempfile.TemporaryDirectory() as folder:
        path = untrained_checkpoint(spec.train, folder)
        ready = prepare(
            CheckpointSource(path, split=spec.split, loss=spec.objective, device=spec.device), spec.analysis
        )
        held_out = held_out_of(ready, spec.analysis)
        cost = estimate_cost(ready.risk, ready.plan, spec.analysis.lanes, held_out=held_out)
    number = len(spec.optimizers)
    stages[f"analysis, {number} times"] = (number * cost.seconds, cost.bytes)
    return stages


def combine(
    out: str | Path,
    files: Mapping[str, Path],
    results: Mapping[str, Mapping[str, xr.Dataset]],
    drawing: Drawing,
    **context: Any,
) -> pd.DataFrame:
    """Write the joint ``summary.csv`` (one row per model and lane) and report; start drawing what compares them."""
    out = Path(out)
    table = pd.concat({name: summarise(groups) for name, groups in results.items()}, names=["model"])
    with writing_atomically(out / SUMMARY) as temporary:
        inert(table).to_csv(temporary)
    if len(files) > 1:
        drawing.start(out / FIGURES, files)
    report(out, results, **context)
    return table


def _timings(out: Path, results: Mapping[str, Mapping[str, xr.Dataset]]) -> dict[str, float]:
    timings = {}
    for name, groups in results.items():
        timings[f"{name}: training, seconds"] = round(float(read_history(out / name)["seconds"].sum()), 2)
        timings[f"{name}: analysis, seconds"] = round(float(groups["accuracy"].attrs["analysis_seconds"]), 2)
    return timings


def _plain(spec: RunSpec) -> dict[str, Any]:
    plain = asdict(spec)
    plain["train"].pop("optimizer")
    return plain
