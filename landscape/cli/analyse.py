"""The commands that analyse checkpoints, but for the spectrum: inspect, perturb, surface, figures, compare."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from landscape.cli import options as opt
from landscape.cli.app import app, command_line, writing_to
from landscape.cli.measuring import estimate, measure_groups
from landscape.cli.terminal import (
    ProgressLine,
    end_of_spectrum,
    meaning_of_trace_error,
    print_json,
    say,
    show_table,
    with_error,
)
from landscape.cli.train import show_verdicts

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from landscape.pipeline import Prepared
    from landscape.plan import Plan


@app.command()
@opt.takes(opt.data_options, opt.checkpoint_options, opt.examples_options, opt.augment_options, split="test")
def inspect(checkpoint: opt.Checkpoint, *, given: dict[str, Any]) -> None:
    """Show what is in a checkpoint: architecture, how it was trained, loss and accuracy per class and group."""
    from landscape.checkpoint import read_checkpoint
    from landscape.diagnosis import measure_accuracy
    from landscape.loading import load_checkpoint, risk_of
    from landscape.models import infer_architecture

    source = opt.checkpoint_source(checkpoint, given)
    stored = read_checkpoint(checkpoint, weights=source.weights)
    facts = _facts(stored, infer_architecture(stored.state_dict))
    has_data = stored.spec is not None or source.dataset is not None
    accuracy = measure_accuracy(risk_of(load_checkpoint(source), source)) if has_data else None
    if given["as_json"]:
        lanes = accuracy.to_dataframe().reset_index().to_dict("records") if accuracy is not None else []
        print_json({"checkpoint": facts, "lanes": lanes})
        return
    for key, value in facts.items():
        say(f"{key + ':':<20} {value}")
    if accuracy is None:
        say("no data set recorded: give --dataset and --data-dir for loss and accuracy per class")
        return
    say(f"\n{source.split} split of {accuracy.attrs['dataset']}: exact mean loss; accuracy ± standard error")
    rows = accuracy.to_dataframe()
    show_table(
        {
            "lane": [str(name) for name in rows.index],
            "examples": [str(n) for n in rows.num_examples],
            "loss": [f"{x:.4f}" for x in rows.loss],
            "accuracy": [f"{a:.4f} ± {e:.4f}" for a, e in zip(rows.accuracy, rows.accuracy_stderr)],
        }
    )


def _facts(stored: Any, architecture: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "file": str(stored.path),
        "sha256": stored.sha256,
        "container": stored.container,
        **({"also holds": f"{stored.other_container} (see --weights)"} if stored.other_container else {}),
        "tensors": len(stored.state_dict),
        "entries": sum(tensor.numel() for tensor in stored.state_dict.values()),
    }
    if stored.spec is not None:
        hidden = ("class_names", "accuracy", "groups", "started_from")
        facts |= {key: value for key, value in stored.spec.items() if key not in hidden}
        earlier = stored.spec.get("started_from") or {}
        what = "first stage" if stored.spec.get("stage") else "started from"
        facts |= {f"{what}, {key}": value for key, value in earlier.items() if key != "accuracy"}
        if "all" in (earlier.get("accuracy") or {}):
            facts[f"{what}, test accuracy"] = earlier["accuracy"]["all"]
    elif architecture is not None:
        facts["looks like"] = f"{architecture.model}, {architecture.num_classes} classes, {architecture.head} head"
    return facts


@app.command()
@opt.takes(*opt.ANALYSES)
def figures(checkpoint: opt.Checkpoint, out: opt.Out, *, given: dict[str, Any]) -> None:
    """Run every analysis of one checkpoint: every figure as PNG and PDF, results.nc, summary.csv, report.html."""
    from landscape.pipeline import REPORT
    from landscape.pipeline import figures as make_figures

    source, spec = opt.checkpoint_source(checkpoint, given), opt.analysis_spec(given)
    if given["dry_run"]:
        estimate(source, spec, given["as_json"])
        return
    with writing_to(out, is_file=False, parts=["journal"]):
        table = make_figures(source, out, spec, command=command_line(), progress=ProgressLine())
    _show_summary(table, given["as_json"])
    if not given["as_json"]:
        say(f"report: {out / REPORT}")


def _show_summary(table: pd.DataFrame, as_json: bool) -> None:
    if as_json:
        print_json(table.reset_index().to_dict("records"))
        return
    show_table(
        {
            "lane": [str(name) for name in table.index],
            "n": [str(n) for n in table.num_examples],
            "loss": [f"{x:.4g}" for x in table.loss],
            "|g|": [f"{x:.3g}" for x in table.gradient_norm],
            "lambda_min": [
                end_of_spectrum(v, e, is_low=True) for v, e in zip(table.lambda_min, table.lambda_min_error)
            ],
            "lambda_max": [
                end_of_spectrum(v, e, is_low=False) for v, e in zip(table.lambda_max, table.lambda_max_error)
            ],
            "trace": [with_error(v, e) for v, e in zip(table.trace, table.trace_stderr)],
            "verdict": [str(v) for v in table.verdict],
        }
    )
    say("loss, |g|: exact over the n examples; lambda ± error: holds the end of the spectrum itself")
    say(f"trace ± {meaning_of_trace_error(table)}")


@app.command()
@opt.takes(*opt.ANALYSES)
def perturb(
    checkpoint: opt.Checkpoint,
    out: opt.Out,
    radii: Annotated[
        str | None, typer.Option(help="Filter-relative radii, 0.05,0.1.", rich_help_panel=opt.ANALYSIS)
    ] = None,
    sigmas: Annotated[
        str | None, typer.Option(help="Gaussian noise per weight, 0.01.", rich_help_panel=opt.ANALYSIS)
    ] = None,
    rhos: Annotated[str | None, typer.Option(help="Worst-case radii, 0.05.", rich_help_panel=opt.ANALYSIS)] = None,
    num_draws: Annotated[int | None, typer.Option(help="Draws, an even number.", rich_help_panel=opt.ANALYSIS)] = None,
    *,
    given: dict[str, Any],
) -> None:
    """Measure how much the loss of every lane moves under random and worst-case perturbations of the weights."""
    from landscape.perturbation import measure_perturbation

    chosen: dict[str, Any] = {
        "radii": opt.parse_numbers(radii, "--radii"),
        "sigmas": opt.parse_numbers(sigmas, "--sigmas"),
        "rhos": opt.parse_numbers(rhos, "--rhos"),
        "num_draws": num_draws,
    }
    changed = {name: value for name, value in chosen.items() if value is not None}

    def measure(ready: Prepared, lanes: Any, shared: dict[str, Any]) -> dict[str, xr.Dataset]:
        options = replace(ready.plan.perturbation, **changed)
        return {"perturbation": measure_perturbation(ready.risk, lanes, options=options, **shared)}

    def adapt(plan: Plan) -> Plan:
        return replace(plan, perturbation=replace(plan.perturbation, **changed))

    groups = measure_groups(checkpoint, out, given, measure, changed, cost={"part": "perturbation", "adapt": adapt})
    if groups is None:
        return
    dataset = groups["perturbation"]
    if given["as_json"]:
        values = dataset[["mean_increase", "mean_increase_stderr", "worst_case_increase"]].to_dict()["data_vars"]
        print_json({**{name: dataset[name].values for name in ("lane", "radius", "rho")}, **values})
        return
    columns = {"lane": [str(name) for name in dataset.lane.values], "n": [str(n) for n in dataset.num_examples.values]}
    for radius in dataset.radius.values:
        at = dataset.sel(radius=radius)
        errors = zip(at.mean_increase.values, at.mean_increase_stderr.values)
        columns[f"radius {radius:g}"] = [with_error(v, e) for v, e in errors]
    for rho in dataset.rho.values:
        columns[f"worst rho {rho:g}"] = [f">= {v:.4g}" for v in dataset.worst_case_increase.sel(rho=rho).values]
    show_table(columns)
    say(
        "mean increase of the loss ± standard error over antithetic pairs; worst case: a lower bound (best of an ascent)"
    )


@app.command()
def compare(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Folders with a results.nc, or with such folders.")
    ],
    out: opt.Out,
    as_json: Annotated[bool, typer.Option("--json", help="Print machine-readable output.")] = False,
) -> None:
    """Compare analysed checkpoints on shared axes and one colour scale, in one report."""
    from landscape.comparison import compare as compare_folders
    from landscape.pipeline import REPORT

    with writing_to(out, is_file=False, inputs=folders):
        table = compare_folders(folders, out, command=command_line())
    if as_json:
        print_json(table.reset_index().to_dict("records"))
        return
    show_verdicts({str(name): rows.droplevel("model") for name, rows in table.groupby("model", sort=False)})
    say(f"report: {out / REPORT}")
