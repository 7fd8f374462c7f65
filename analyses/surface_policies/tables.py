"""The tables of ``docs/surfaces.md``, from the rows of the study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from analyses.surface_policies.study import DISTANCES, HEAD, POLICIES, TAIL

TRAININGS = {"short": "15 epochs", "long": "60 epochs"}
# How the quantities begin (... and end) that decide the claims, one or two of each.
HEADLINES = (
    "head loss at distance 0.5, frozen over recalibrated",
    "tail over head loss at distance 1, recalibrated over frozen",
    "tail loss at the weights, recalibrated on balanced over long-tailed images",
    "sd over directions of the tail loss at 0.5, frozen",
    "lambda_min of class 9",
    "share of random directions with negative curvature of class 9, autograd",
    "share of random directions with negative curvature of class 9, difference over 0.2",
    "share of networks, steps up to 0.4",
    "change of the loss of class 9 at +0.2 v_min",
    "change of the head's loss at +0.2 v_min",
    "least variance ratio of a class ... Gaussian, sigma = 0.01",
    "variance ratio of all, filter-normalised",
    "gradient norm of class 9 over that of the whole",
)


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Return rows of equal keys as a Markdown table."""
    header = list(rows[0])
    lines = [header, ["---"] * len(header), *([row[key] for key in header] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def short(value: float, digits: int = 2) -> str:
    """Return a number with so many significant digits, without an exponent where it stays short."""
    return f"{float(f'{value:.{digits}g}'):g}"


def _spread(values: pd.Series) -> str:
    return f"{short(values.mean())} ± {short(values.std(ddof=1), 1)}"


def _range(rows: pd.DataFrame) -> str:
    return f"{short(rows.value.mean())} [{short(rows.low.min())}, {short(rows.high.max())}]"


def policies_table(table: pd.DataFrame) -> str:
    """Return head / tail loss by training, distance and policy: mean ± standard deviation over networks."""
    rows = table[(table.part == "batchnorm") & (table.measure == "loss")]

    def cell(training: str, distance: float, policy: str) -> str:
        at = rows[(rows.training == training) & (rows["at"] == distance) & (rows.setting == policy)]
        return " / ".join(_spread(at[at.lane == lane].value) for lane in ("head", "tail"))

    return markdown(
        [
            {
                "training": name,
                "distance": f"{distance:g}",
                **{f"{policy}: head / tail": cell(training, distance, policy) for policy in POLICIES},
            }
            for training, name in TRAININGS.items()
            for distance in DISTANCES
        ]
    )


def slices_table(table: pd.DataFrame) -> str:
    """Return both ends of the spectrum, the mean eigenvalue and the random curvatures of three lanes."""
    rows = table[table.part == "slices"]

    def line(training: str, lane: str) -> dict[str, str]:
        of_lane = rows[(rows.training == training) & (rows.lane == lane)]

        def value(measure: str) -> str:
            return _spread(of_lane[of_lane.measure == measure].value)

        curvatures = of_lane[of_lane.measure == "curvature along random directions"]
        autograd, fitted = (curvatures[curvatures.setting.str.startswith(how)] for how in ("autograd", "difference"))
        return {
            "training": TRAININGS[training],
            "loss of": lane if lane == "all" else f"class {lane}",
            "train loss": value("loss"),
            "lambda_max": value("lambda_max"),
            "lambda_min": value("lambda_min"),
            "tr H / P": value("trace / P"),
            "random curvature, autograd": _range(autograd),
            "fitted over 0.2": _range(fitted),
        }

    return markdown([line(training, lane) for training in TRAININGS for lane in (HEAD, TAIL, "all")])


def conclusions_table(conclusions: pd.DataFrame) -> str:
    """Return the number that decides each claim, with its interval and what became of the claim, by training."""

    def cell(rows: pd.DataFrame, training: str) -> str:
        (row,) = rows[rows.training == training].itertuples()
        return f"{short(row.value)} [{short(row.low)}, {short(row.high)}], {row.verdict}"

    lines = []
    for headline in HEADLINES:
        start, _, end = headline.partition(" ... ")
        rows = conclusions[conclusions.quantity.str.startswith(start) & conclusions.quantity.str.endswith(end)]
        lines.append(
            {
                "claim": rows.claim.iloc[0],
                "number": headline.replace(" ... ", ", "),
                **{name: cell(rows, training) for training, name in TRAININGS.items()},
            }
        )
    return markdown(lines)
