"""What every measuring command does around its measurement: dry run, journal beside OUT, the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.cli import options as opt
from landscape.cli.app import writing_to
from landscape.cli.terminal import ProgressLine, show_estimate

if TYPE_CHECKING:
    import xarray as xr

    from landscape.loading import CheckpointSource
    from landscape.pipeline import AnalysisSpec, Prepared
    from landscape.plan import Plan

# A prepared checkpoint, the choice of lanes, and what measurements share (seed, average, journal, progress) -> groups.
Measure = Callable[["Prepared", Any, dict[str, Any]], "dict[str, xr.Dataset]"]


def estimate(
    source: CheckpointSource,
    spec: AnalysisSpec,
    as_json: bool,
    *,
    part: str | None = None,
    adapt: Callable[[Plan], Plan] | None = None,
    num_times: int = 1,
) -> None:
    """Print the estimated time and memory of all analyses, or of one with the plan adapted to its options."""
    from landscape.estimation import estimate_cost
    from landscape.pipeline import held_out_of, prepare
    from landscape.plan import ANALYSES

    ready = prepare(source, spec)
    held_out = held_out_of(ready, spec) if part is None else None
    plan = adapt(ready.plan) if adapt is not None else ready.plan
    cost = estimate_cost(ready.risk, plan, spec.lanes, held_out=held_out, parts=ANALYSES if part is None else (part,))
    what = f"{part or 'analysis'} of {Path(source.path).name}" + (f", {num_times} times" if num_times > 1 else "")
    show_estimate({what: (num_times * cost.seconds, cost.bytes)}, as_json=as_json)


def measure_groups(
    checkpoint: Path,
    out: Path,
    given: dict[str, Any],
    measure: Measure,
    recipe: Mapping[str, Any],
    *,
    inputs: Sequence[Path] = (),
    cost: Mapping[str, Any] | None = None,
) -> dict[str, xr.Dataset] | None:
    """Run a measurement with a journal beside OUT and write its groups to OUT; None after a dry run.

    ``recipe`` is what decides the numbers beside the checkpoint and the common options; ``inputs`` are further files that
    are read; ``cost`` are options of :func:`estimate`.
    """
    from landscape.pipeline import prepare
    from landscape.results import Journal, save_results

    source, spec = opt.checkpoint_source(checkpoint, given), opt.analysis_spec(given)
    if given["dry_run"]:
        estimate(source, spec, given["as_json"], **(cost or {}))
        return None
    folder = out.with_name(f"{out.name}.journal")
    with writing_to(out, is_file=True, inputs=[checkpoint, *inputs], parts=[folder.name]):
        ready = prepare(source, spec)
        whole = {**ready.risk.attributes, "spec": asdict(spec), "plan": asdict(ready.plan), **recipe}
        journal = Journal(folder, whole)
        kept = {"seed": spec.seed, "group_average": spec.group_average, "journal": journal}
        with ready.threads():
            groups = measure(ready, spec.lanes, {**kept, "progress": ProgressLine()})
        save_results(groups, out)
        journal.clear()
        return groups
