"""The command ``escape``: what following each lane's most negative curvature does to it and to the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from landscape.cli import options as opt
from landscape.cli.app import app
from landscape.cli.measuring import measure_groups
from landscape.cli.terminal import print_json, say, show_table, with_error

if TYPE_CHECKING:
    import xarray as xr

    from landscape.pipeline import Prepared


@app.command()
@opt.takes(*opt.ANALYSES)
def escape(
    checkpoint: opt.Checkpoint,
    out: opt.Out,
    lengths: Annotated[
        str | None,
        typer.Option(help="Lengths walked both ways, in tenths of |theta|, 0.01,0.1,1.", rich_help_panel=opt.ANALYSIS),
    ] = None,
    draw: Annotated[bool, typer.Option("--draw", help="Also draw the matrix, beside OUT.")] = False,
    *,
    given: dict[str, Any],
) -> None:
    """Walk along +-v_min of every class: its own loss, every other lane's, the best decrease and its distance."""
    from landscape.surface import measure_escape

    chosen = opt.parse_numbers(lengths, "--lengths")

    def measure(ready: Prepared, lanes: Any, shared: dict[str, Any]) -> dict[str, xr.Dataset]:
        wanted = "classes" if lanes is None else lanes
        return {"escape": measure_escape(ready.risk, wanted, x=chosen, options=ready.plan.spectrum, **shared)}

    cost = {"part": "spectrum"}  # its products are what it costs: twenty-six evaluations a lane come on top
    groups = measure_groups(checkpoint, out, given, measure, {"lengths": lengths, "command": "escape"}, cost=cost)
    if groups is None:
        return
    dataset = groups["escape"]
    files = [out]
    if draw:
        from landscape.figures import plot_escape_matrix
        from landscape.figures.saving import save_figure

        files += save_figure(plot_escape_matrix(dataset), out.with_suffix(""))
    if given["as_json"]:
        names = ("lane", "lambda_min", "lambda_min_residual", "best_decrease", "best_distance", "affordable_decrease")
        print_json({**{name: dataset[name].values for name in names}, "files": files})
        return
    _show(dataset)
    for path in files:
        say(f"results: {path}")


def _show(dataset: xr.Dataset) -> None:
    names = [str(name) for name in dataset.affected_lane.values]
    groups = [name for name in ("head", "medium", "tail", "all") if name in names]
    columns = {
        "lane": [str(name) for name in dataset.lane.values],
        "v'Hv": [f"{value:.4g}" for value in dataset.lambda_min.values],
        "best decrease": [],
        "at": [f"{value:+.3g}" if value else "-" for value in dataset.best_distance.values],
    }
    for name in dataset.lane.values:
        one = dataset.sel(lane=name)
        error = float(one.increase_at_best_stderr.sel(affected_lane=name))
        columns["best decrease"].append(with_error(float(one.best_decrease), error))
    for name in groups:
        at = dataset.sel(affected_lane=name)
        pairs = zip(at.increase_at_best.values, at.increase_at_best_stderr.values)
        columns[f"cost to {name}"] = [with_error(value, error) for value, error in pairs]
    columns["affordable"] = [f"{v:.3g}" if v > 0 else "none" for v in dataset.affordable_decrease.values]
    show_table(columns)
    say("decrease and cost in nats ± paired standard error over images, at the best of the steps walked along +-v_min;")
    say(f"distance {dataset.attrs['units'].partition('; ')[2]}; v'Hv: the curvature along v, an exact product")
    say("affordable: the largest decrease of a step that costs no group, nor the whole, more than a tenth of it")
