"""The commands that draw finished files and pass surfaces to and from other tools: draw, export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from landscape.cli import options as opt
from landscape.cli.app import app, writing_to
from landscape.cli.terminal import print_json, say
from landscape.errors import LandscapeError, unknown_name
from landscape.files import one_line

if TYPE_CHECKING:
    import xarray as xr

ENDINGS = (".npz", ".vts", ".csv")
FOREIGN = (".h5", ".hdf5")

File = Annotated[
    Path, typer.Argument(metavar="FILE", help="A .nc file of ours, or a .h5 surface of tomgoldstein/loss-landscape.")
]
OrderOption = Annotated[
    str, typer.Option("--order", help="Values of a .h5 plane: scheduler (as its tool fills it) or shape.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print machine-readable output.")]


@app.command()
def draw(file: File, out: opt.Out, order: OrderOption = "scheduler", as_json: AsJson = False) -> None:
    """Draw every figure that a results file allows, as PNG and PDF; also surfaces of tomgoldstein/loss-landscape."""
    from landscape.figures import save_figures

    tree = _results(file, order)
    with writing_to(out, is_file=False, inputs=[file]), one_line(f"{file}: what is in it cannot be drawn"):
        paths = save_figures(tree, out)
    if as_json:
        print_json({"figures": [str(path) for path in paths]})
        return
    for path in paths:
        say(str(path))


@app.command()
def export(
    file: File,
    out: opt.Out,
    group: Annotated[
        str | None, typer.Option("--group", help="surface, surface_line or surface_eigen, if there are several.")
    ] = None,
    lanes: Annotated[
        str | None,
        typer.Option("--lanes", help="classes, groups, every, or names; the first gives the heights of a .vts."),
    ] = None,
    pair: Annotated[
        int | None, typer.Option("--pair", help="Direction pair; the first by default, all of them in a .csv.")
    ] = None,
    variable: Annotated[str | None, typer.Option("--variable", help="loss by default; all of them in a .csv.")] = None,
    order: OrderOption = "scheduler",
    as_json: AsJson = False,
) -> None:
    """Write a surface for other programs: .npz for Landscaper, .vts for ParaView, .csv with a row for every value."""
    if out.suffix not in ENDINGS:
        raise LandscapeError(f"--out {out}: expected a name that ends in {', '.join(ENDINGS[:2])} or {ENDINGS[2]}")
    name, dataset = _surface(_results(file, order), group, file)
    chosen = _lanes(dataset, lanes)
    with writing_to(out, is_file=True, inputs=[file]):
        if out.suffix == ".csv":
            rows = _write_table(dataset, out, chosen, pair, variable)
        else:
            rows = _write_grid(dataset, out, chosen, pair, variable or "loss")
    if as_json:
        print_json({"out": str(out), "group": name, **rows})
        return
    say(f"{out}: {', '.join(f'{key} {value}' for key, value in rows.items())}")


def _results(file: Path, order: str) -> xr.DataTree:
    """Return the groups of a file of ours, or those that a file of the other tool makes."""
    import xarray as xr

    from landscape.exchange import read_goldstein, surface_group
    from landscape.results import load_results

    if file.suffix not in FOREIGN:
        if order != "scheduler":
            raise LandscapeError(f"--order {order}: {file} records its order; the option is for .h5 files of others")
        return load_results(file)
    dataset = read_goldstein(file, order=order)  # type: ignore[arg-type]
    return xr.DataTree.from_dict({surface_group(dataset): dataset})


def _surface(tree: xr.DataTree, group: str | None, file: Path) -> tuple[str, xr.Dataset]:
    known = [str(name) for name, node in tree.children.items() if {"alpha", "lane"} <= set(node.dataset.dims)]
    if not known:
        held = ", ".join(map(str, tree.children)) or "nothing"
        raise LandscapeError(f"{file}: expected a surface, got {held}: measure one with 'landscape surface'")
    if group is None and len(known) > 1:
        raise LandscapeError(f"{file} holds several surfaces, {', '.join(known)}: choose one with --group")
    name = known[0] if group is None else group
    if name not in known:
        raise LandscapeError(f"--group {group}: expected one of the surfaces in {file}: {', '.join(known)}")
    return name, tree[name].to_dataset()


def _lanes(dataset: xr.Dataset, text: str | None) -> list[str] | None:
    from landscape.figures.preparation import choose_lanes

    if text is None:
        return None
    names = opt.parse_names(text, "--lanes")
    return choose_lanes({"": dataset}, names[0] if len(names) == 1 else names, ())


def _write_grid(
    dataset: xr.Dataset, out: Path, lanes: list[str] | None, pair: int | None, variable: str
) -> dict[str, Any]:
    from landscape.exchange import write_landscaper, write_vts

    known = [str(name) for name in dataset["lane"].values]
    if out.suffix == ".vts":
        write_vts(dataset, out, lanes=lanes, pair=pair, variable=variable)
        lanes = lanes or known
        return {"variable": variable, "heights of": lanes[0], "lanes": len(lanes)}
    if lanes is None:
        lanes = ["all" if "all" in known else known[0]]
    if len(lanes) > 1:
        raise LandscapeError(f"--lanes: a file for Landscaper holds one lane, got {', '.join(lanes)}: choose one")
    write_landscaper(dataset, out, lane=lanes[0], pair=pair, variable=variable)
    return {"variable": variable, "lane": lanes[0]}


def _write_table(
    dataset: xr.Dataset, out: Path, lanes: list[str] | None, pair: int | None, variable: str | None
) -> dict[str, Any]:
    from landscape.exchange import write_csv

    if variable is not None and variable not in dataset:
        raise unknown_name("variable of the surface", variable, map(str, dataset.data_vars))
    if pair is not None and pair not in dataset["pair"].values:
        raise unknown_name("direction pair", str(pair), map(str, dataset["pair"].values))
    if variable is not None:
        dataset = dataset[[variable, *(["done"] if "done" in dataset else [])]]
    if lanes is not None:
        dataset = dataset.sel(lane=lanes)
    if pair is not None:
        dataset = dataset.sel(pair=[pair])
    write_csv(dataset, out)
    return {name: dataset.sizes[name] for name in ("pair", "beta", "alpha", "lane") if name in dataset.sizes}
