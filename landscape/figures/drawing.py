"""The arrangement of panels and the choice of the backend.

A backend is imported when first used, so a page needs no matplotlib and a PDF no plotly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from landscape.errors import unknown_name
from landscape.figures.picture import Backend, Panel, Picture


def render(picture: Picture, backend: Backend) -> Any:
    """Return the picture as a figure of the named backend.

    Raises
    ------
    LandscapeError
        If the backend is neither ``"matplotlib"`` nor ``"plotly"``.
    """
    if backend == "matplotlib":
        from landscape.figures import matplotlib_marks

        return matplotlib_marks.draw(picture)
    if backend == "plotly":
        from landscape.figures import plotly_marks

        return plotly_marks.draw(picture)
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
