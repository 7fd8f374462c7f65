"""The arrangement of panels, the width of a figure, and the choice of the backend.

A backend is imported when first used, so a page needs no matplotlib and a PDF no plotly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from landscape.errors import LandscapeError, unknown_name
from landscape.figures.picture import Axis, Backend, Panel, Picture

_WIDTH: ContextVar[float | None] = ContextVar("width of figures, in inches", default=None)
# The narrowest panel whose ticks remain legible, and the width that a colour bar takes, in inches.
_NARROWEST = 1.25
_COLOUR_BAR = 0.8
_SMALLEST, _LARGEST = 2.5, 40.0


@contextmanager
def drawn_at(width: float) -> Iterator[None]:
    """Draw every matplotlib figure inside the block ``width`` inches wide, as it will stand on the paper.

    Text keeps its size (6 to 9 points), so nothing needs to be scaled afterwards; panels that would become too narrow
    move below each other. A page (plotly) is as wide as its window and does not change.

    Parameters
    ----------
    width
        In inches: 3.3 for a column, 6.9 for a page of two.

    Raises
    ------
    LandscapeError
        If the width is not between 2.5 and 40 inches.

    Examples
    --------
    >>> with drawn_at(3.3):
    ...     narrow = render(Picture("Nothing", ((Panel("", Axis(), Axis(), ()),),)), "matplotlib")
    >>> [round(float(side), 6) for side in narrow.get_size_inches()][0]
    3.3
    """
    if not _SMALLEST <= width <= _LARGEST:
        raise LandscapeError(
            f"expected a width between {_SMALLEST:g} and {_LARGEST:g} inches, got {width:g}: a column is about 3.3"
        )
    token = _WIDTH.set(float(width))
    try:
        yield
    finally:
        _WIDTH.reset(token)


def render(picture: Picture, backend: Backend) -> Any:
    """Return the picture as a figure of the named backend.

    Raises
    ------
    LandscapeError
        If the backend is neither ``"matplotlib"`` nor ``"plotly"``.
    """
    if backend == "matplotlib":
        from landscape.figures import matplotlib_marks

        width = _WIDTH.get()
        return matplotlib_marks.draw(picture if width is None else _narrowed(picture, width), width)
    if backend == "plotly":
        from landscape.figures import plotly_layout

        return plotly_layout.draw(picture)
    raise unknown_name("backend", backend, ["matplotlib", "plotly"])


def arrange(panels: Sequence[Panel], rows: int, columns: int, x_label: str) -> tuple[tuple[Panel | None, ...], ...]:
    """Place panels in reading order; the lowest of each column carries the x label, the first column the y label."""
    placed: list[list[Panel | None]] = [[None] * columns for _ in range(rows)]
    for index, panel in enumerate(panels):
        i, j = divmod(index, columns)
        y = panel.y if j == 0 else replace(panel.y, label="", categories=("",) * len(panel.y.categories))
        x = replace(panel.x, label=x_label) if index + columns >= len(panels) else panel.x
        placed[i][j] = replace(panel, x=x, y=y)
    return tuple(tuple(row) for row in placed)


def _narrowed(picture: Picture, width: float) -> Picture:
    """Return the picture with at most as many panels beside each other as remain legible at a width."""
    present = max(len(row) for row in picture.rows)
    scales = len(picture.scales)
    room = max(1, int((width - _COLOUR_BAR * min(scales, 1)) / (_NARROWEST + _COLOUR_BAR * (scales > 1))))
    if present <= room:
        return picture
    panels = _complete(picture)
    if not picture.linked:  # panels of different kinds: one below the other, each with all its labels
        return replace(picture, rows=tuple((panel,) for panel in panels))
    columns = min(room, len(panels))
    x_label = next((panel.x.label for panel in panels if panel.x.label), "")
    bare = [replace(panel, x=replace(panel.x, label="")) for panel in panels]
    return replace(picture, rows=arrange(bare, -(-len(panels) // columns), columns, x_label))


def _complete(picture: Picture) -> list[Panel]:
    """Return the panels with the labels that they leave to their neighbours."""
    panels = []
    for i, row in enumerate(picture.rows):
        first = next((panel for panel in row if panel is not None), None)
        for j, panel in enumerate(row):
            if panel is None or first is None:
                continue
            below = [r[j] for r in picture.rows[i:] if j < len(r)]
            label = next((p.x.label for p in reversed(below) if p is not None and p.x.label), "")
            x = replace(panel.x, label=panel.x.label or label)
            panels.append(replace(panel, x=x, y=_with_names(panel.y, first.y)))
    return panels


def _with_names(axis: Axis, first: Axis) -> Axis:
    """Return an axis with the label and the names of the first panel's in its row, where it only left them out."""
    if axis.limits != first.limits:
        return axis
    is_blank = bool(axis.categories) and not any(axis.categories)
    categories = first.categories if is_blank and len(first.categories) == len(axis.categories) else axis.categories
    return replace(axis, label=axis.label or first.label, categories=categories)
