"""A reconstruction from checkpoints to files: figures, results, and a text that says what is ours."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from landscape.errors import LandscapeError, unknown_name
from landscape.figures.saving import save_figure
from landscape.files import write_bytes
from landscape.reconstruction.plots import Made, Progress, Settings
from landscape.reconstruction.registry import RECONSTRUCTIONS, Reconstruction
from landscape.results import Journal, save_results
from landscape.risk import ClassRisk
from landscape.risk.points import Policy

FIGURE_TITLE_SIZE = 9.5
# What must agree for checkpoints to be seen on the same images.
SAME = ("dataset", "data_recipe", "split", "max_per_class", "augmentation", "parameters")


def reconstruct(
    name: str,
    risks: Mapping[str, ClassRisk],
    out: str | Path,
    *,
    seed: int = 0,
    points: int | None = None,
    batchnorm: Policy = "frozen",
    progress: Progress | None = None,
) -> list[Path]:
    """Measure and draw one published plot for one or several checkpoints, on the same images and one scale.

    Parameters
    ----------
    name
        A key of :data:`RECONSTRUCTIONS`.
    risks
        ``{name: risk}``, in the order of the panels; the names stand in the figures and file names.
    out
        Folder, made if it does not exist.
    seed
        Root of the draws: the same raw ones for every checkpoint, each rescaled by that checkpoint's own weights.
    points
        Points per axis of a line or plane; by default as published, or 21 where that is not known.
    batchnorm
        ``"frozen"`` or ``"recalibrate"``, of lines and planes.
    progress
        Callback ``(done, total, text)``.

    Returns
    -------
    list of pathlib.Path
        ``NAME-FIGURE.png`` and ``.pdf``, ``NAME-CHECKPOINT.nc``, and ``NAME.md``: what is imitated, what is public,
        what is ours. Values on lines and planes are exact evaluations over the stated images; the error over directions
        or draws is drawn where there are several.

    Raises
    ------
    LandscapeError
        For an unknown name, no checkpoints, names that are no file names, checkpoints that are not seen on the same
        images, or classes without head and tail where the plot needs them.

    Examples
    --------
    >>> print(RECONSTRUCTIONS["ccsam-line"].title)
    Reconstruction of CC-SAM's 1-D loss landscape: direction, range and loss are ours
    """
    if name not in RECONSTRUCTIONS:
        raise unknown_name("reconstruction", name, RECONSTRUCTIONS)
    _require_comparable(risks)
    if points is not None and points < 3:
        raise LandscapeError(f"points: expected at least 3 per axis, got {points}")
    published, folder = RECONSTRUCTIONS[name], Path(out)
    journal = _journal(name, risks, folder, (seed, points, batchnorm))
    made = published.make(risks, Settings(seed, points, batchnorm, progress, journal))
    paths = []
    for label, figure in made.figures.items():
        _put_title(figure, published.title)
        paths += save_figure(figure, folder / f"{name}-{label}")
    for label, dataset in made.results.items():
        dataset.attrs |= {"reconstruction": name, "reconstruction_of": published.imitates, "ours": published.ours}
        paths.append(save_results({made.group: dataset}, folder / f"{name}-{label}.nc"))
    text = folder / f"{name}.md"
    write_bytes(text, _caption(published, made).encode())
    if journal is not None:
        journal.clear()
    return [*paths, text]


def _journal(name: str, risks: Mapping[str, ClassRisk], folder: Path, settings: object) -> Journal | None:
    """Return a journal where the attributes of every risk identify its weights, else None."""
    if not all(risk.attributes.get("checkpoint_sha256") for risk in risks.values()):
        return None
    return Journal(
        folder / "journal", {"name": name, "settings": settings, "risks": [risk.attributes for risk in risks.values()]}
    )


def _require_comparable(risks: Mapping[str, ClassRisk]) -> None:
    if not risks:
        raise LandscapeError("expected at least one checkpoint to reconstruct a plot from, got none")
    for name in risks:
        if not re.fullmatch(r"[\w.+-]+", name):
            raise LandscapeError(f"checkpoint name '{name}': expected letters, digits, '.', '+', '-' and '_' alone")
    (first_name, first), *others = risks.items()
    for name, risk in others:
        facts = {
            "classes": (tuple(first.class_names), tuple(risk.class_names)),
            "images per class": (first.class_counts.tolist(), risk.class_counts.tolist()),
            "head, medium and tail": (dict(first.groups), dict(risk.groups)),
            **{key: (first.attributes.get(key), risk.attributes.get(key)) for key in SAME},
        }
        for what, (a, b) in facts.items():
            if a != b:
                raise LandscapeError(f"{first_name} and {name} differ in {what}, {a} and {b}: choose the same for both")


def _put_title(figure: Any, title: str) -> None:
    """Write the title over that of the plot, on one line: the figure has no room for more."""
    text = figure.texts[0]
    inches = figure.get_figwidth() - 0.2
    text.set_text(title)
    text.set_fontsize(min(FIGURE_TITLE_SIZE, 72 * inches / (0.6 * len(title))))


def _caption(published: Reconstruction, made: Made) -> str:
    first: xr.Dataset = next(iter(made.results.values()))
    facts = {
        key: first.attrs.get(key) for key in ("dataset", "split", "normalization", "batchnorm", "seed", "versions")
    }
    lines: Sequence[str] = (
        f"# {published.title}",
        "",
        f"- Imitates: {published.imitates}.",
        f"- Published in: {published.paper}.",
        f"- Public: {published.public}.",
        f"- Ours: {published.ours}.",
        f"- Checkpoints: {', '.join(made.results)}.",
        *(f"- {key}: {value}" for key, value in facts.items() if value is not None),
        "",
    )
    return "\n".join(lines)
