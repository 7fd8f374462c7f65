"""The command ``surface``: lines and planes of one checkpoint, or of several that are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from landscape.cli import options as opt
from landscape.cli.app import app, writing_to
from landscape.cli.reconstruct import checkpoint_names
from landscape.cli.surface_tables import show_differences, show_surfaces
from landscape.cli.surface_work import AUTO, SurfaceWork, other_files
from landscape.cli.terminal import print_json, say
from landscape.errors import LandscapeError, unknown_name
from landscape.files import require_replaceable

if TYPE_CHECKING:
    import xarray as xr


def surface_options(
    kind: Annotated[str, opt.option("--kind", "line or plane.", opt.ANALYSIS)] = "plane",
    directions: Annotated[
        str,
        opt.option(
            "--directions",
            "random, eigen:LANE (v_min, and v_max), gradient:LANE[,LANE], CKPT (a line to it), CKPT,CKPT (the plane "
            "through all three), or trajectory:CKPT,CKPT,... (main axes of a training).",
            opt.ANALYSIS,
        ),
    ] = "random",
    normalization: Annotated[
        str, opt.option("--normalization", "Of random directions: filter, layer, model or gaussian.", opt.ANALYSIS)
    ] = "filter",
    one_dimensional: Annotated[
        str, opt.option("--one-dimensional", "Biases and norm layers: zero (stay) or scale (move).", opt.ANALYSIS)
    ] = "zero",
    save_directions: Annotated[
        Path | None, opt.option("--save-directions", "Also write the axes, a .safetensors file.", opt.ANALYSIS)
    ] = None,
    x: Annotated[
        str | None, opt.option("--x", "START:STOP:COUNT, such as --x=-1:1:51, or auto[:COUNT].", opt.ANALYSIS)
    ] = None,
    y: Annotated[str | None, opt.option("--y", "START:STOP:COUNT of the second axis, or auto.", opt.ANALYSIS)] = None,
    range_: Annotated[
        str | None,
        opt.option("--range", "auto: both axes as far as every group's loss rises by --delta.", opt.ANALYSIS),
    ] = None,
    delta: Annotated[
        float, opt.option("--delta", "Rise of the loss, in nats, that auto looks for.", opt.ANALYSIS)
    ] = 1.0,
    num_pairs: Annotated[int | None, opt.option("--num-pairs", "Random directions or pairs.", opt.ANALYSIS)] = None,
    batchnorm: Annotated[
        str, opt.option("--batchnorm", "frozen, recalibrate at every point, or both.", opt.ANALYSIS)
    ] = "frozen",
    calibration: Annotated[
        str,
        opt.option("--calibration", "Recalibrate on train (long-tailed) or balanced images, :N of them.", opt.ANALYSIS),
    ] = "train",
    held_out: Annotated[
        bool, opt.option("--held-out", "Walk over the other split as well, at the same points.", opt.ANALYSIS)
    ] = False,
    keep_examples: Annotated[
        bool, opt.option("--keep-examples", "Keep every image's loss: regroup and resample later.", opt.ANALYSIS)
    ] = False,
    quadratic: Annotated[
        bool, opt.option("--quadratic", "Also slopes, curvatures and fitted quadratics.", opt.ANALYSIS)
    ] = False,
    refine: Annotated[
        float | None,
        opt.option(
            "--refine", "Interpolate a plane to this checked share of each lane's range, such as 0.01.", opt.ANALYSIS
        ),
    ] = None,
    precision: Annotated[
        str, opt.option("--precision", "exact, or preview: bfloat16 with its error.", opt.ANALYSIS)
    ] = "exact",
    draw: Annotated[bool, opt.option("--draw", "Also draw every figure, into OUT-figures.", opt.ANALYSIS)] = False,
) -> None:
    """Options of the surface alone."""


@app.command()
@opt.takes(*opt.ANALYSES, surface_options)
def surface(
    checkpoint: Annotated[list[Path], typer.Argument(metavar="CKPT...", help="One checkpoint, or several to compare.")],
    out: opt.Out,
    *,
    given: dict[str, Any],
) -> None:
    """Measure the loss of every lane on lines or planes through the weights.

    Several checkpoints are measured on the same images, with the same draws and one range: OUT is then a folder with a
    file each, the differences to the first with paired intervals, and figures on one scale.
    """
    grid = _grid(given)
    _require_sense(checkpoint, given)
    names, sources = checkpoint_names(checkpoint), [opt.checkpoint_source(path, given) for path in checkpoint]
    sources = [replace(source, **_calibration(given["calibration"])) for source in sources]
    several = len(checkpoint) > 1
    if several and out.suffix == ".nc":
        raise LandscapeError(
            f"--out {out}: several checkpoints write a folder; choose a name such as {out.with_suffix('')}"
        )
    others = other_files(given["directions"])
    folder = out / "journal" if several else out.with_name(f"{out.name}.journal")
    with writing_to(out, is_file=not several, inputs=[*checkpoint, *others], parts=[] if several else [folder.name]):
        work = SurfaceWork.of(dict(zip(names, sources)), given, grid, folder, others)
        if given["dry_run"]:
            work.estimate()
            return
        surfaces, differences = work.measure()
        files = work.save(out, surfaces, differences)
    if given["as_json"]:
        briefs = {name: _brief(dataset) for name, dataset in surfaces.items()}
        print_json({"files": files, **({"surfaces": briefs} if several else next(iter(briefs.values())))})
        return
    show_surfaces(surfaces)
    show_differences(differences)
    for path in files:
        say(f"results: {path}")
    if not given["draw"] and not several:
        say(f"figures: landscape draw {out} --out {out.with_suffix('')}-figures")


def _brief(dataset: xr.Dataset) -> dict[str, Any]:
    dims = [dim for dim in dataset.loss.dims if dim != "lane"]
    lowest = dataset.loss.min(dims)
    return {"lane": dataset.lane.values, "lowest": lowest.values, "shape": dict(dataset.sizes)}


def _calibration(text: str) -> dict[str, Any]:
    """Return the fields of a source that ``train``, ``balanced`` or ``balanced:500`` means."""
    name, colon, count = text.partition(":")
    if colon and not count.isdigit():
        raise LandscapeError(f"--calibration: expected train, balanced or one of these with :COUNT, got '{text}'")
    return {"calibration": name, **({"calibration_examples": int(count)} if colon else {})}


def _grid(given: dict[str, Any]) -> dict[str, Any]:
    """Return, per axis, coordinates, None (the preset's) or the number of points of a range to be found."""
    from landscape.ranges import parse_range

    def axis(text: str | None, option: str) -> Any:
        if text is None:
            return AUTO if given["range_"] == AUTO else None
        if text.partition(":")[0] == AUTO:
            count = text.partition(":")[2]
            if count and (not count.isdigit() or int(count) < 2):
                raise LandscapeError(f"{option}: expected auto or auto:COUNT with COUNT >= 2, got '{text}'")
            return f"{AUTO}:{count}" if count else AUTO
        if given["range_"] == AUTO:
            raise LandscapeError(f"{option}: '{text}' and --range auto say two things: give one of them")
        return parse_range(text, option)

    if given["range_"] not in (None, AUTO):
        raise unknown_name("--range", given["range_"], (AUTO,))
    return {"x": axis(given["x"], "--x"), "y": axis(given["y"], "--y")}


def _require_sense(checkpoints: Sequence[Path], given: dict[str, Any]) -> None:
    """Refuse, before any work, what cannot be combined."""
    from landscape.risk.evaluator import require_precision
    from landscape.surface import KINDS

    kind, directions, pairs = given["kind"], given["directions"], given["num_pairs"]
    if kind not in KINDS:
        raise unknown_name("kind of surface", kind, KINDS)
    require_precision(given["precision"])
    if given["y"] is not None and kind == "line":
        raise LandscapeError(f"--y {given['y']}: a line has one axis; leave it out, or choose --kind plane")
    if pairs is not None and (pairs < 1 or directions != "random"):
        raise LandscapeError(f"--num-pairs {pairs}: expected at least 1, and --directions random, got {directions}")
    if given["refine"] is not None and (kind == "line" or not 0 < given["refine"] < 1):
        raise LandscapeError(
            f"--refine {given['refine']}: expected a share between 0 and 1, and --kind plane, got {kind}"
        )
    if not given["delta"] > 0:
        raise LandscapeError(f"--delta: expected a positive rise of the loss in nats, got {given['delta']}")
    if len(checkpoints) > 1 and other_files(directions):
        raise LandscapeError(
            f"--directions {directions}: expected random, eigen:LANE or gradient:LANE for several checkpoints, whose axes "
            "each one's own weights scale"
        )
    if len(checkpoints) > 1 and given["save_directions"] is not None:
        raise LandscapeError("--save-directions: expected one checkpoint, got several; run the command once for each")
    if given["save_directions"] is not None:
        require_replaceable(given["save_directions"])
