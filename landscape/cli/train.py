"""The commands that train: ``run`` (the main job) and ``train`` (one model)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from landscape.cli import checks
from landscape.cli import options as opt
from landscape.cli.app import app, command_line, writing_to
from landscape.cli.terminal import (
    ProgressLine,
    end_of_spectrum,
    note,
    print_json,
    say,
    show_estimate,
    show_table,
    with_error,
)
from landscape.errors import LandscapeError
from landscape.files import one_line

if TYPE_CHECKING:
    import pandas as pd

    from landscape.pipeline import RunSpec

ALL_OPTIMIZERS = "sgd,sam,asam,imbsam,ccsam,ssesam,gnm"
# Those of the main job, and all that one training can take; literal, because no command imports torch to print its help.
EVERY_OPTIMIZER = f"{ALL_OPTIMIZERS},focal-sam,gnp,lpf,mp,perturbed-gd,swa,spectral-norm"
GROUP_LANES = ("head", "medium", "tail", "all")


@app.command()
@opt.takes(opt.data_options, opt.training_options, opt.examples_options, opt.lanes_options)
def run(
    out: opt.Out,
    optimizers: Annotated[
        str, typer.Option("--optimizers", help="Names, comma-separated.", rich_help_panel=opt.MODEL)
    ] = ALL_OPTIMIZERS,
    *,
    given: dict[str, Any],
) -> None:
    """Train with every optimizer, run every analysis on each, and write OUT/report.html.

    Without options: the built-in long-tailed digits. A killed run goes on where it stopped when the same command is
    given again.
    """
    from landscape.pipeline import REPORT, RunSpec, estimate_run, run_everything
    from landscape.processes import launched_processes

    if launched_processes().size > 1:
        raise LandscapeError(
            f"landscape run analyses in one process, got {launched_processes().size}: start it without torchrun, "
            "or train with landscape train"
        )
    spec = RunSpec(
        train=opt.train_spec(given),
        optimizers=opt.parse_names(optimizers, "--optimizers"),
        analysis=opt.analysis_spec(given),
        split=given["split"],
        objective=given["objective"],
        device=given["device"],
    )
    if given["dry_run"]:
        show_estimate(estimate_run(spec), as_json=given["as_json"])
        return
    parts = [part for name in spec.optimizers for part in (f"{name}/journal", name)]
    with writing_to(out, is_file=False, parts=parts):
        _require_lanes(spec)
        tables = run_everything(spec, out, command=command_line(), announce=note, progress=ProgressLine())
    if given["as_json"]:
        print_json({name: table.reset_index().to_dict("records") for name, table in tables.items()})
        return
    show_verdicts(tables)
    say(f"report: {out / REPORT}")


def _require_lanes(spec: RunSpec) -> None:
    """Fail before the training where the data cannot be read or do not have the lanes, not after it."""
    import torch

    from landscape.risk import choose_lanes

    data = spec.train.load_data()
    split = data.train if spec.split == "train" else data.test
    choose_lanes(
        spec.analysis.lanes,
        class_names=data.class_names,
        class_counts=torch.tensor(split.counts(data.num_classes)),
        groups=data.groups.members,
    )


def show_verdicts(tables: dict[str, pd.DataFrame]) -> None:
    """Print verdict and lambda_min with its error per model, for the groups and the whole (or every lane there is)."""
    lanes = [lane for lane in GROUP_LANES if all(lane in table.index for table in tables.values())]
    lanes = lanes or list(next(iter(tables.values())).index)
    rows: list[tuple[str, str, Any]] = [
        (name, lane, table.loc[lane]) for name, table in tables.items() for lane in lanes
    ]
    nan = float("nan")
    show_table(
        {
            "model": [name for name, _, _ in rows],
            "lane": [lane for _, lane, _ in rows],
            "test accuracy": [
                with_error(r.get("test_accuracy", nan), r.get("test_accuracy_stderr", nan)) for _, _, r in rows
            ],
            "lambda_min": [end_of_spectrum(r.lambda_min, r.lambda_min_error, is_low=True) for _, _, r in rows],
            "lambda_max": [end_of_spectrum(r.lambda_max, r.lambda_max_error, is_low=False) for _, _, r in rows],
            "verdict": [r.verdict for _, _, r in rows],
        }
    )
    say("accuracy ± standard error; lambda ± error: holds the end of the spectrum itself")


@app.command()
@opt.takes(opt.data_options, opt.training_options)
def train(
    out: opt.Out,
    optimizer: Annotated[
        str | None, typer.Option("--optimizer", help=EVERY_OPTIMIZER.replace(",", ", "), rich_help_panel=opt.MODEL)
    ] = None,
    optimizer_option: Annotated[
        list[str] | None,
        typer.Option(
            "--optimizer-option", help="NAME=VALUE such as rho=0.1; may be repeated.", rich_help_panel=opt.MODEL
        ),
    ] = None,
    snapshot_every: Annotated[
        int | None,
        typer.Option(
            "--snapshot-every",
            "--save-every",
            help="Keep OUT/epoch-0010.safetensors and so on: epoch 1, every N, the last.",
            callback=checks.at_least_one("--snapshot-every"),
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run in OUT.")] = False,
    *,
    given: dict[str, Any],
) -> None:
    """Train one model: OUT/checkpoint.safetensors, OUT/run.json, OUT/history.csv.

    Under torchrun several processes share each batch, one per GPU.
    """
    from landscape.processes import launched_processes
    from landscape.training import estimate_training
    from landscape.training import train as train_model

    own = {"optimizer": optimizer, "optimizer_option": optimizer_option}
    spec = opt.train_spec(given | own, snapshot_every=snapshot_every or 0)
    if given["dry_run"]:
        show_estimate(
            {f"training with {spec.optimizer}": estimate_training(spec, device=given["device"])},
            as_json=given["as_json"],
        )
        return
    with writing_to(out, is_file=False):
        path = train_model(spec, out, device=given["device"], resume=resume, progress=ProgressLine())
    if not launched_processes().is_first:
        return
    show_accuracy(path, as_json=given["as_json"])


def show_accuracy(path: Path, *, as_json: bool) -> None:
    """Print the test accuracy of a training by group, of its last epoch and of its best one."""
    with one_line(f"{path.parent / 'run.json'} is damaged, the accuracies in it cannot be shown"):
        reported = json.loads((path.parent / "run.json").read_bytes())["accuracy"]
        if not (isinstance(reported["last_epoch"]["test_accuracy"], dict) and isinstance(reported["best_epoch"], dict)):
            raise ValueError("its 'accuracy' is not what a run writes")
    if as_json:
        values = reported["last_epoch"]["test_accuracy"]
        accuracy = {lane: values[lane] for lane in GROUP_LANES if lane in values}
        print_json({"checkpoint": str(path), "test_accuracy": accuracy, "reported": reported})
        return
    for name, what in (("last_epoch", "test accuracy"), ("best_epoch", "best epoch on the test images")):
        for kind, how in (("test_accuracy", ""), ("test_flip_accuracy", ", with mirror images")):
            if values := reported[name].get(kind):
                shown = ", ".join(f"{lane} {values[lane]:.3f}" for lane in GROUP_LANES if lane in values)
                epoch = f", {reported[name]['epoch']}" if name == "best_epoch" else ""
                say(f"{what}{epoch}{how} (exact mean over the test split): {shown}")
    say(f"checkpoint: {path}")
