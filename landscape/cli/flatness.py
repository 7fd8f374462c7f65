"""The command ``flatness``: every measure of flatness of every lane, with its error."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from landscape.cli import options as opt
from landscape.cli.app import app
from landscape.cli.measuring import measure_groups
from landscape.cli.terminal import print_json, say, show_estimate, show_table, with_error

if TYPE_CHECKING:
    import xarray as xr

    from landscape.flatness import FlatnessOptions, Measure
    from landscape.pipeline import Prepared

# Heading of a table and the families of measures in it.
TABLES = {
    "from one pass over the examples: exact; ± standard error of these images as a sample": ("pass",),
    "mean increase of the loss under random changes ± standard error over draws": ("average",),
    "worst increase of the loss: lower bounds (best of an ascent); over batches ± standard error": (
        "worst case",
        "batches",
    ),
    "radius at which the loss has risen by delta, median over directions and both ways, with its interval": ("radius",),
}


def flatness_options(
    measures: Annotated[str | None, opt.option("--measures", "Names, comma-separated; all.", opt.ANALYSIS)] = None,
    sigma: Annotated[float | None, opt.option("--sigma", "Gaussian noise per weight.", opt.ANALYSIS)] = None,
    relative_radius: Annotated[
        float | None, opt.option("--relative-radius", "Share of each filter's norm.", opt.ANALYSIS)
    ] = None,
    placement: Annotated[
        str | None, opt.option("--placement", "Filter-relative draws on the sphere, or in the ball.", opt.ANALYSIS)
    ] = None,
    adaptive_radius: Annotated[
        float | None, opt.option("--adaptive-radius", "Noise as a share of each weight.", opt.ANALYSIS)
    ] = None,
    rho: Annotated[float | None, opt.option("--rho", "Worst-case radius, l2.", opt.ANALYSIS)] = None,
    rho_linf: Annotated[float | None, opt.option("--rho-linf", "Worst-case radius, linf.", opt.ANALYSIS)] = None,
    adaptive_rho: Annotated[
        float | None, opt.option("--adaptive-rho", "Worst-case radius in units of each weight, l2.", opt.ANALYSIS)
    ] = None,
    adaptive_rho_linf: Annotated[
        float | None, opt.option("--adaptive-rho-linf", "The same, linf.", opt.ANALYSIS)
    ] = None,
    delta: Annotated[
        float | None, opt.option("--delta", "Rise, in nats, whose radius is sought.", opt.ANALYSIS)
    ] = None,
    num_pairs: Annotated[int | None, opt.option("--num-pairs", "Antithetic pairs per average.", opt.ANALYSIS)] = None,
    ascent_steps: Annotated[int | None, opt.option("--ascent-steps", "Steps of each ascent.", opt.ANALYSIS)] = None,
    batch_size: Annotated[
        int | None, opt.option("--batch-size", "The m of m-sharpness; the smallest class.", opt.ANALYSIS)
    ] = None,
    max_batches: Annotated[int | None, opt.option("--max-batches", "Batches of a lane at most.", opt.ANALYSIS)] = None,
) -> None:
    """Options of the command; their names are the fields of FlatnessOptions."""


@app.command()
@opt.takes(*opt.ANALYSES, flatness_options)
def flatness(checkpoint: opt.Checkpoint, out: opt.Out, *, given: dict[str, Any]) -> None:
    """Measure how flat the loss of every lane is: averages, worst cases, relative flatness, Fisher-Rao, with errors."""
    from landscape.flatness import measure_flatness

    options = _options(given)
    if given["dry_run"]:
        _estimate(checkpoint, given, options)
        return

    def measure(ready: Prepared, lanes: Any, shared: dict[str, Any]) -> dict[str, xr.Dataset]:
        return {"flatness": measure_flatness(ready.risk, lanes, options=options, **shared)}

    groups = measure_groups(checkpoint, out, given, measure, {"flatness": asdict(options)})
    if groups is None:
        return
    dataset = groups["flatness"]
    if given["as_json"]:
        print_json({"lane": dataset.lane.values, **{str(name): dataset[name].values for name in dataset.data_vars}})
        return
    _show(dataset)
    say(f"results: {out}")


def _options(given: dict[str, Any]) -> FlatnessOptions:
    from landscape.flatness import EFFORT, choose_measures
    from landscape.plan import choose_plan

    names = [name for name in asdict(EFFORT["quick"]) if name != "measures"]
    changed = {name: given[name] for name in names if given[name] is not None}
    if given["measures"] is not None:
        changed["measures"] = opt.parse_names(given["measures"], "--measures")
        choose_measures(changed["measures"])
    choose_plan(given["preset"])
    return replace(EFFORT[given["preset"]], **changed)


def _estimate(checkpoint: Path, given: dict[str, Any], options: FlatnessOptions) -> None:
    from landscape.flatness import estimate_flatness
    from landscape.pipeline import prepare

    source, spec = opt.checkpoint_source(checkpoint, given), opt.analysis_spec(given)
    ready = prepare(source, spec)
    with ready.threads():
        cost = estimate_flatness(ready.risk, spec.lanes, options=options, group_average=spec.group_average)
    show_estimate({f"flatness of {checkpoint.name}": cost}, as_json=given["as_json"])


def _show(dataset: xr.Dataset) -> None:
    """Print a table per family: a row per lane, a column per measure that has values."""
    from landscape.flatness import MEASURES

    lanes = {"lane": [str(name) for name in dataset.lane.values]}
    counts = {"n": [str(n) for n in dataset.num_examples.values], "loss": [f"{x:.4g}" for x in dataset.loss.values]}
    missing: dict[str, str] = {}
    for heading, families in TABLES.items():
        columns = dict(lanes) | (counts if families == ("pass",) else {})
        for name, entry in MEASURES.items():
            if name not in dataset or entry.family not in families:
                continue
            if "missing" in dataset[name].attrs:
                missing[name] = str(dataset[name].attrs["missing"])
            else:
                columns[name.removesuffix("_increase")] = _cells(dataset, name, entry)
        if len(columns) > 1:
            say(heading)
            show_table(columns)
    for name, reason in missing.items():
        say(f"{name}: {reason}")
    if "m_sharpness_batch_size" in dataset:
        sizes = np.unique(dataset.m_sharpness_batch_size.values)
        say(f"m_sharpness: m = {dataset.m_sharpness.attrs['batch_size']}" + _exceptions(dataset, sizes))


def _cells(dataset: xr.Dataset, name: str, entry: Measure) -> list[str]:
    values = dataset[name].values
    if f"{name}_stderr" in dataset:
        return [with_error(value, error) for value, error in zip(values, dataset[f"{name}_stderr"].values)]
    if f"{name}_low" in dataset:
        ends = zip(values, dataset[f"{name}_low"].values, dataset[f"{name}_high"].values)
        return [f"{value:.3g} [{low:.3g}, {high:.3g}]" for value, low, high in ends]
    sign = ">= " if "lower bound" in entry.exactness else ""
    return [f"{sign}{value:.4g}" for value in values]


def _exceptions(dataset: xr.Dataset, sizes: np.ndarray) -> str:
    if len(sizes) == 1:
        return ", the same for every lane"
    smaller = dataset.lane.values[dataset.m_sharpness_batch_size.values < dataset.m_sharpness.attrs["batch_size"]]
    return f", but fewer in {', '.join(map(str, smaller))}: not comparable with the others"
