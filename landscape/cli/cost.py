"""The command ``cost``: what each optimizer costs beside plain training, and the published table."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from landscape.cli import options as opt
from landscape.cli.app import app
from landscape.cli.terminal import ProgressLine, print_json, say, show_table

if TYPE_CHECKING:
    from landscape.cost import Cost

MIB = 2**20


@app.command()
@opt.takes(opt.data_options, opt.training_options)
def cost(
    optimizers: Annotated[
        str | None, typer.Option("--optimizers", help="Names, comma-separated; all.", rich_help_panel=opt.MODEL)
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", help="Rounds in which every method is timed once.")] = 15,
    steps: Annotated[int, typer.Option("--steps", help="Steps per round and method.")] = 1,
    out: Annotated[Path | None, typer.Option("--out", help="Also write the measured table, a .csv file.")] = None,
    *,
    given: dict[str, Any],
) -> None:
    """Time every optimizer on the same network, loss and batch: passes, time relative to plain training, memory."""
    from landscape.cost import CostOptions, measure_costs
    from landscape.errors import LandscapeError
    from landscape.files import require_replaceable, write_bytes
    from landscape.optimizers import OPTIMIZERS

    if out is not None and (out.suffix != ".csv" or not out.parent.is_dir()):
        raise LandscapeError(f"--out: expected a .csv file in a folder that exists, got {out}")
    if out is not None:
        require_replaceable(out)
    names = opt.parse_names(optimizers, "--optimizers") if optimizers is not None else tuple(OPTIMIZERS)
    costs = measure_costs(
        opt.train_spec(given),
        names,
        options=CostOptions(num_rounds=rounds, num_steps=steps),
        device=given["device"],
        progress=ProgressLine(),
    )
    if out is not None:
        import pandas as pd

        write_bytes(out, pd.DataFrame([asdict(row) for row in costs]).to_csv(index=False).encode())
    if given["as_json"]:
        print_json({"measured": [asdict(row) for row in costs], "published": _published()})
        return
    _show(costs)


def _show(costs: list[Cost]) -> None:
    from landscape.cost.published import NET_SOURCE, PUBLISHED_NET

    show_table(
        {
            "optimizer": [row.optimizer for row in costs],
            "forwards": [str(row.num_forwards) for row in costs],
            "backwards": [str(row.num_backwards) for row in costs],
            "time": [_interval(row) for row in costs],
            "by passes": [f"{row.implied:.2f}" for row in costs],
            "ms per step": [f"{1e3 * row.seconds:.4g}" for row in costs],
            "images/s": [f"{row.images_per_second:.4g}" for row in costs],
            "peak MiB": [f"{row.peak_bytes / MIB:.4g}" for row in costs],
        }
    )
    say("time: relative to plain training, median over rounds [95 % interval]; by passes: what the passes alone imply")
    say(
        "passes are counted, exact; peak: weights, states and tensors of a step, kernels' workspace on a CPU not counted"
    )
    say("")
    say(NET_SOURCE)
    show_table(
        {
            "published": [row.method for row in PUBLISHED_NET],
            "optimizer": [row.optimizer for row in PUBLISHED_NET],
            "accuracy %": [f"{row.accuracy:.2f}" for row in PUBLISHED_NET],
            "NET s": [f"{row.seconds:.2f}" for row in PUBLISHED_NET],
            "time": [f"{row.ratio:.2f}" for row in PUBLISHED_NET],
        }
    )
    say("published times have no error bars; what is timed is not said")


def _interval(row: Cost) -> str:
    if row.optimizer == "sgd":
        return "1 (reference)"
    return f"{row.ratio:.3f} [{row.ratio_low:.3f}, {row.ratio_high:.3f}]"


def _published() -> list[dict[str, Any]]:
    from landscape.cost.published import PUBLISHED_NET

    return [{**asdict(row), "ratio": row.ratio} for row in PUBLISHED_NET]
