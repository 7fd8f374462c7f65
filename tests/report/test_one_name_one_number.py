"""One result read through every door: the file, the summary, JSON, the terminal's tables, the report, the figure."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from landscape import AnalyticRisk
from landscape.cli.spectrum_tables import print_groups, show_groups
from landscape.diagnosis import summarise
from landscape.figures.verdicts import _numbers
from landscape.report.summary import lane_rows, verdict_matrix
from landscape.spectrum import SpectrumOptions, measure_spectrum

# Terminal, report and figure by the name in the summary.
SHOWN = {
    "ratio": ("ratio", "ratio", "ratio"),
    "lambda_min_over_gradient": ("|lmin|/|g|", "|λmin| / |g|", "|λmin| / |g|"),
    "crossover_radius": ("crossover", "crossover radius", None),
    "quadratic_radius": ("quadratic", "quadratic radius", None),
    "gradient_norm": ("|g|", "|g|", None),
    "loss": ("loss", "loss", None),
    "trace": ("trace", "trace ± error", None),
    "negative_energy": ("negative energy", "negative energy ± se", None),
    "lambda_min": ("lambda_min", "λmin ± error", "λmin ± error"),
    "lambda_max": ("lambda_max", "λmax ± error", None),
}


def shared(t):
    """A saddle with a slope, a bowl, a hilltop, and a bowl at its bottom: every sign that a ratio can have."""
    saddle = t[0] ** 2 - 0.5 * t[1] ** 2 + 0.01 * t[1] + t[1] ** 4
    hilltop = 3 - (t**2).sum() / 2 + 0.25 * t[0]
    return torch.stack([saddle, 0.5 * t[0] ** 2 + t[1] ** 2 + t[2] ** 2 + t[0], hilltop, (t**2).sum()])


@pytest.fixture(scope="module")
def spectrum():
    risk = AnalyticRisk(
        shared, torch.zeros(3, dtype=torch.float64), class_names=["saddle", "bowl", "hilltop", "bottom"]
    )
    return measure_spectrum(risk, "classes", options=SpectrumOptions())


def number(text) -> float:
    """The first number of a cell; NaN for a dash."""
    first = str(text).replace("−", "-").split()
    return math.nan if not first or first[0] in ("-", "–") else float(first[0])


def finite(value: float) -> float:
    return value if math.isfinite(value) else math.nan


def terminal(dataset, capsys) -> pd.DataFrame:
    """All tables that are printed, side by side."""
    show_groups({"spectrum": dataset})
    lines = capsys.readouterr().out.splitlines()
    parts = []
    for index, line in enumerate(lines):
        if line.startswith("lane "):
            rows = lines[index : index + 1 + dataset.sizes["lane"]]
            cells = [re.split(r"\s{2,}", row.strip()) for row in rows]
            if {len(row) for row in cells} == {len(cells[0])}:  # escapes are of fewer lanes
                parts.append(pd.DataFrame(cells[1:], columns=cells[0]).set_index("lane"))
    return pd.concat(parts, axis=1)


def test_every_door_shows_the_same_numbers(spectrum, capsys, tmp_path):
    summarise({"spectrum": spectrum}).to_csv(tmp_path / "summary.csv")
    summary = pd.read_csv(tmp_path / "summary.csv", index_col="lane")
    print_groups({"spectrum": spectrum})
    records = {record["lane"]: record for record in json.loads(capsys.readouterr().out)}
    printed = terminal(spectrum, capsys)
    head, rows = lane_rows(xr.DataTree.from_dict({"spectrum": spectrum}))
    report = {row[0]: dict(zip(head, row)) for row in rows}
    for lane in spectrum.lane.values:
        figure = _numbers(spectrum, lane)
        for name, (in_terminal, in_report, in_figure) in SHOWN.items():
            expected = finite(float(summary.loc[lane, name]))
            if name in spectrum:
                assert finite(float(spectrum[name].sel(lane=lane))) == pytest.approx(expected, nan_ok=True), (
                    lane,
                    name,
                )
            stored = records[str(lane)][name]
            assert finite(float("nan" if stored is None else stored)) == pytest.approx(expected, nan_ok=True), (
                lane,
                name,
            )
            cells = [printed.loc[lane, in_terminal], report[lane][in_report]]
            cells += [figure[in_figure]] if in_figure else []
            for cell in cells:
                # Two digits at least, and rounding of the smallest number that is printed.
                assert number(cell) == pytest.approx(expected, rel=0.05, abs=1e-12, nan_ok=True), (lane, name, cell)


def test_ratios_of_every_sign(spectrum):
    summary = summarise({"spectrum": spectrum})
    assert summary.ratio["saddle"] == pytest.approx(0.5)
    assert summary.ratio["bowl"] == summary.ratio["bottom"] == 0.0
    assert math.isnan(summary.ratio["hilltop"])
    assert summary.lambda_min_over_gradient["saddle"] == pytest.approx(100.0)
    assert summary.lambda_min_over_gradient["bowl"] == 0.0
    assert math.isnan(summary.lambda_min_over_gradient["bottom"])
    assert [row["cells"][0]["ratio"] for row in verdict_matrix({"": spectrum})] == ["0.5", "0", "–", "0"]
    assert np.isinf(summary.crossover_radius["bowl"])
