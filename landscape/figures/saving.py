"""Every figure of a checkpoint, or of several on shared axes, as PNG and PDF files."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from landscape.errors import LandscapeError
from landscape.figures.catalogue import CATALOGUE, available
from landscape.files import writing_atomically

_LOG = logging.getLogger(__name__)
_DPI = 160


def save_figures(tree: xr.DataTree, out_dir: str | Path) -> list[Path]:
    """Save every figure of one checkpoint.

    Parameters
    ----------
    tree
        The results of one checkpoint; groups that are not there are passed over.
    out_dir
        The folder, made if it does not exist.

    Returns
    -------
    list of pathlib.Path
        The files, a PNG (160 dpi) and a PDF of each figure. The PDFs carry no date: equal results give equal files.

    Raises
    ------
    LandscapeError
        If the tree holds no result at all.
    """
    results = {str(tree.attrs.get("optimizer", "")): tree}
    paths: list[Path] = []
    for entry in CATALOGUE:
        data = available(results, entry)
        if data and entry.single:
            paths += _save(entry.plot, next(iter(data.values())), entry.options, Path(out_dir) / entry.name)
    return _checked(paths)


def save_comparison_figures(results: Mapping[str, xr.DataTree], out_dir: str | Path) -> list[Path]:
    """Save every figure that compares several checkpoints on shared axes and one colour scale.

    Parameters
    ----------
    results
        ``{optimizer: results}``; a figure draws those that hold what it needs.
    out_dir
        The folder, made if it does not exist.

    Returns
    -------
    list of pathlib.Path
        The files, named ``compare-...``.

    Raises
    ------
    LandscapeError
        If no result is there to draw.
    """
    paths: list[Path] = []
    for entry in CATALOGUE:
        data = available(results, entry)
        if data and entry.compared:
            paths += _save(entry.plot, data, entry.options, Path(out_dir) / f"compare-{entry.name}")
    return _checked(paths)


def _save(plot: Any, data: Any, options: dict[str, Any], stem: Path) -> list[Path]:
    try:
        figure = plot(data, backend="matplotlib", **options)
    except LandscapeError as error:
        _LOG.warning("no figure %s: %s", stem.name, error)
        return []
    return save_figure(figure, stem)


def save_figure(figure: Any, stem: Path) -> list[Path]:
    """Save a matplotlib figure as ``STEM.png`` (160 dpi) and ``STEM.pdf`` (without a date); return both paths."""
    # Imported here: a page of the other backend needs no matplotlib.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_pdf import FigureCanvasPdf

    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(f"{stem.name}.{ending}") for ending in ("png", "pdf")]
    figure.set_dpi(_DPI)
    with writing_atomically(paths[0]) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)  # savefig would draw each file twice, once into nothing
    figure.set_layout_engine("none")  # both files have one layout, and it is found once
    with writing_atomically(paths[1]) as temporary:
        FigureCanvasPdf(figure).print_pdf(temporary, metadata={"CreationDate": None})
    figure.clear()
    return paths


def _checked(paths: list[Path]) -> list[Path]:
    if not paths:
        raise LandscapeError(
            "expected at least one group of results (spectrum, perturbation, surface, ...), got none: measure first"
        )
    return paths
