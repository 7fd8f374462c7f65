"""The command ``reconstruct``: a published plot for one or several checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from landscape.cli import options as opt
from landscape.cli.app import app, writing_to
from landscape.cli.measuring import estimate
from landscape.cli.terminal import ProgressLine, print_json, say
from landscape.errors import LandscapeError, unknown_name

if TYPE_CHECKING:
    from landscape.plan import Plan


def _list(value: bool) -> None:
    if not value:
        return
    from landscape.reconstruction import RECONSTRUCTIONS

    for name, entry in RECONSTRUCTIONS.items():
        say(f"{name}\n  imitates: {entry.imitates}\n  in:       {entry.paper}")
        say(f"  public:   {entry.public}\n  ours:     {entry.ours}")
    raise typer.Exit


@app.command()
@opt.takes(
    opt.data_options, opt.checkpoint_options, opt.examples_options, opt.reconstruction_options, opt.weights_options
)
def reconstruct(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A published plot; --list shows all.")],
    checkpoint: Annotated[
        list[Path], typer.Argument(metavar="CKPT...", help="Checkpoints, drawn on the same images and one scale.")
    ],
    out: opt.Out,
    listing: Annotated[
        bool,
        typer.Option("--list", callback=_list, is_eager=True, help="Say what each plot imitates and what is ours."),
    ] = False,
    *,
    given: dict[str, Any],
) -> None:
    """Draw a published plot for checkpoints: what of it is public, and what is ours, stands on every figure."""
    from landscape.pipeline import AnalysisSpec, prepare
    from landscape.reconstruction import RECONSTRUCTIONS
    from landscape.reconstruction import reconstruct as make

    if name not in RECONSTRUCTIONS:
        raise unknown_name("reconstruction", name, RECONSTRUCTIONS)
    if given["points"] is not None and given["points"] < 3:
        raise LandscapeError(f"--points: expected at least 3 per axis, got {given['points']}")
    spec = AnalysisSpec(preset="standard", seed=given["seed"], max_per_class=given["max_per_class"])
    names = checkpoint_names(checkpoint)
    sources = [opt.checkpoint_source(path, given) for path in checkpoint]
    if given["dry_run"]:
        total = RECONSTRUCTIONS[name].num_evaluations(given["points"])

        def adapt(plan: Plan) -> Plan:
            return replace(plan, line_points=total, line_pairs=1, plane_points=0, eigen_points=0)

        estimate(sources[0], spec, given["as_json"], part="surface", adapt=adapt, num_times=len(sources))
        return
    with writing_to(out, is_file=False, inputs=checkpoint, parts=["journal"]):
        ready = [prepare(source, spec) for source in sources]
        risks: dict[str, Any] = {label: one.risk for label, one in zip(names, ready)}
        with ready[0].threads():
            paths = make(
                name,
                risks,
                out,
                seed=given["seed"],
                points=given["points"],
                batchnorm=given["batchnorm"],  # it says itself what it takes
                progress=ProgressLine(),
            )
    if given["as_json"]:
        print_json({"reconstruction": name, "checkpoints": list(names), "files": paths})
        return
    say(RECONSTRUCTIONS[name].title)
    for path in paths:
        say(f"  {path}")


def checkpoint_names(paths: Sequence[Path]) -> list[str]:
    """Return a name for each checkpoint: that of the file, of its folder where all files are named alike, or both.

    Raises
    ------
    LandscapeError
        If a checkpoint is given twice.

    Examples
    --------
    >>> checkpoint_names([Path("sgd/checkpoint.safetensors"), Path("sam/checkpoint.safetensors")])
    ['sgd', 'sam']
    >>> checkpoint_names([Path("ce.pt"), Path("sam.pt")])
    ['ce', 'sam']
    """
    choices = (
        [path.stem for path in paths if path.stem != "checkpoint"],
        [path.resolve().parent.name for path in paths],
        [f"{path.resolve().parent.name}-{path.stem}" for path in paths],
    )
    for names in choices:
        if len(set(names)) == len(paths):
            return ["".join(ch if ch.isalnum() or ch in "_.+-" else "-" for ch in name) for name in names]
    twice = [str(path) for number, path in enumerate(paths) if path.resolve() in {p.resolve() for p in paths[:number]}]
    if twice:
        raise LandscapeError(f"reconstruct: each checkpoint once, got {twice[0]} again")
    raise LandscapeError("reconstruct: expected checkpoints whose file or folder names differ; rename one of them")
