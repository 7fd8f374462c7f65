"""What the rows say about each claim, with an interval over the training seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from analyses.surface_policies.study import CONFIDENCE, DISTANCES, HEAD, SIGMA, TAIL

CONFIRMED, WEAKER, REFUTED, MEASURED = "confirmed", "weaker", "not confirmed", "measured"
LONG_TAILED, BALANCED = "recalibrated, long-tailed", "recalibrated, balanced"
TAIL_CLASSES = ("7", "8", "9")
GAUSSIAN = f"Gaussian, sigma = {SIGMA:g}"
# "An order of magnitude".
LARGE = 10.0


@dataclass(frozen=True)
class Conclusion:
    """A claim, what became of it, and the number that decides, with its 95 % interval.

    ``verdict`` is ``confirmed``; ``weaker``: the direction holds, the size that was claimed does not; ``not confirmed``;
    or ``measured``, where nothing was claimed before.
    """

    training: str
    claim: str
    verdict: str
    quantity: str
    value: float
    low: float
    high: float


def _values(table: pd.DataFrame, measure: str, **where: object) -> np.ndarray:
    """Return one value per seed."""
    chosen = table[table.measure == measure]
    for column, value in where.items():
        chosen = chosen[chosen[column] == value]
    return chosen.sort_values("seed").value.to_numpy()


def mean_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Return the mean over seeds and its interval by Student's t."""
    error = stats.sem(values)
    if not error > 0:
        return float(values.mean()), float(values.mean()), float(values.mean())
    low, high = stats.t.interval(CONFIDENCE, len(values) - 1, loc=values.mean(), scale=error)
    return float(values.mean()), float(low), float(high)


def ratio_interval(above: np.ndarray, below: np.ndarray) -> tuple[float, float, float]:
    """Return the geometric mean over seeds of a ratio and its interval, by Student's t on logarithms."""
    mean, low, high = mean_interval(np.log(above / below))
    return float(np.exp(mean)), float(np.exp(low)), float(np.exp(high))


def share_interval(count: int, total: int) -> tuple[float, float, float]:
    """Return a share and its exact (Clopper and Pearson) interval."""
    interval = stats.binomtest(count, total).proportion_ci(CONFIDENCE, method="exact")
    return count / total, float(interval.low), float(interval.high)


def _size(interval: tuple[float, float, float], claimed: float) -> str:
    """Return whether a ratio is as large as claimed, at least above one, or not."""
    _, low, high = interval
    if high >= claimed and low > 1:
        return CONFIRMED
    return WEAKER if low > 1 else REFUTED


# ---- 1. BatchNorm -------------------------------------------------------------------------------------------------


def frozen_against_recalibrated(table: pd.DataFrame) -> Iterator[tuple[str, str, str, tuple[float, float, float]]]:
    def losses(lane: str, setting: str, at: float) -> np.ndarray:
        return _values(table, "loss", part="batchnorm", lane=lane, setting=setting, at=at)

    for at in DISTANCES[3:]:
        ratio = ratio_interval(losses("head", "frozen", at), losses("head", LONG_TAILED, at))
        quantity = f"head loss at distance {at:g}, frozen over recalibrated"
        yield "the BatchNorm policy changes a surface by an order of magnitude", _size(ratio, LARGE), quantity, ratio
    far = DISTANCES[-1]
    contrast = {s: losses("tail", s, far) / losses("head", s, far) for s in ("frozen", LONG_TAILED)}
    ratio = ratio_interval(contrast[LONG_TAILED], contrast["frozen"])
    verdict = CONFIRMED if ratio[1] > 1 else REFUTED
    quantity = f"tail over head loss at distance {far:g}, recalibrated over frozen"
    yield "frozen statistics hide the contrast of head and tail far out", verdict, quantity, ratio
    for lane in ("head", "tail"):
        ratio = ratio_interval(losses(lane, BALANCED, 0.0), losses(lane, LONG_TAILED, 0.0))
        verdict = CONFIRMED if ratio[1] > 1 or ratio[2] < 1 else REFUTED
        quantity = f"{lane} loss at the weights, recalibrated on balanced over long-tailed images"
        yield "the images of the recalibration matter", verdict, quantity, ratio


def sources_of_error(table: pd.DataFrame) -> Iterator[tuple[str, str, str, tuple[float, float, float]]]:
    at, claim = 0.5, "directions are the largest source of error"
    rows = table[(table.part == "batchnorm") & (table.measure == "loss") & (table["at"] == at)]
    for setting in ("frozen", LONG_TAILED):
        chosen = rows[(rows.lane == "tail") & (rows.setting == setting)].sort_values("seed")
        spread, means = ((chosen.high - chosen.low) / 2).to_numpy(), chosen.value.to_numpy()
        interval = mean_interval(spread)
        between = float(means.std(ddof=1))
        verdict = CONFIRMED if interval[1] > between else WEAKER if interval[0] > between else REFUTED
        yield claim, verdict, f"sd over directions of the tail loss at {at:g}, {setting}", interval
        yield claim, MEASURED, f"sd over seeds of its mean, {setting}", _sd_interval(means)
    images = _values(table, "stderr over images", lane="tail")
    yield claim, MEASURED, f"stderr over images of the tail's increase at {at:g}, frozen", mean_interval(images)


def _sd_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Return the standard deviation of a normal sample with its chi-square interval."""
    count, sd = len(values), float(values.std(ddof=1))
    ends = stats.chi2.ppf([(1 + CONFIDENCE) / 2, (1 - CONFIDENCE) / 2], count - 1)
    low, high = sd * np.sqrt((count - 1) / ends)
    return sd, float(low), float(high)


# ---- 2. slices ----------------------------------------------------------------------------------------------------


def hidden_saddles(table: pd.DataFrame) -> Iterator[tuple[str, str, str, tuple[float, float, float]]]:
    claim = "slices hide saddles: negative eigenvalues, but no random direction of negative curvature"
    negative = "random directions of negative curvature"
    for lane in (HEAD, TAIL, "all"):
        rows = table[(table.lane == lane) & (table.measure == "lambda_min")]
        interval = mean_interval(rows.value.to_numpy())
        verdict = CONFIRMED if (rows.high < 0).all() else REFUTED
        yield claim, verdict, f"lambda_min of {_name(lane)}", interval
        for how in sorted(table[table.measure == negative].setting.unique()):
            counts = _values(table, negative, lane=lane, setting=how)
            share = share_interval(int(counts.sum()), len(counts) * _num_slices(table))
            verdict = CONFIRMED if share[0] == 0 else WEAKER if share[2] < 0.1 else REFUTED
            yield claim, verdict, f"share of random directions with negative curvature of {_name(lane)}, {how}", share
    counts = _values(table, "random slices that fall both ways", lane=TAIL)
    share = share_interval(int(counts.sum()), len(counts) * _num_slices(table))
    verdict = CONFIRMED if share[0] == 0 else WEAKER if share[2] < 0.1 else REFUTED
    yield claim, verdict, "share of random slices along which the loss of class 9 falls both ways, step 0.2", share


def _name(lane: str) -> str:
    return lane if lane == "all" else f"class {lane}"


def _num_slices(table: pd.DataFrame) -> int:
    text = table[table.measure == "curvature along random directions"].interval.iloc[0]
    return int(text.split()[2])


def escape(table: pd.DataFrame) -> Iterator[tuple[str, str, str, tuple[float, float, float]]]:
    def along(lane: str) -> pd.DataFrame:
        rows = table[(table.part == "escape") & (table.lane == lane)]
        return rows.pivot_table(index="seed", columns="at", values="value")

    tail, head = along(TAIL), along("head")
    falls = tail.sub(tail[0.0], axis=0)
    both = (falls.loc[:, falls.columns < 0].min(axis=1) < 0) & (falls.loc[:, falls.columns > 0].min(axis=1) < 0)
    share = share_interval(int(both.sum()), len(both))
    verdict = CONFIRMED if both.all() else WEAKER if both.any() else REFUTED
    yield "the tail's loss falls along both signs of its v_min", verdict, "share of networks, steps up to 0.4", share
    claim = "an escape of the tail hardly costs the head"
    step = 0.2
    yield claim, MEASURED, f"change of the loss of class 9 at +{step:g} v_min", mean_interval(falls[step].to_numpy())
    costs = (head[step] - head[0.0]).to_numpy()
    interval = mean_interval(costs)
    verdict = CONFIRMED if interval[2] < 0.1 * -falls[step].mean() else REFUTED
    yield claim, verdict, f"change of the head's loss at +{step:g} v_min", interval


# ---- 3., 4. draws, gradients, confidence --------------------------------------------------------------------------


def antithetic(table: pd.DataFrame) -> Iterator[tuple[str, str, str, tuple[float, float, float]]]:
    claim = "antithetic pairs lower the variance of every class at equal cost"
    rows = table[(table.part == "antithetic") & table.lane.isin([str(c) for c in range(10)])]
    for setting, of_setting in rows.groupby("setting", sort=False):
        found = {}
        for lane, of_lane in of_setting.groupby("lane"):
            values = of_lane.sort_values("seed").value.to_numpy()
            found[str(lane)] = ratio_interval(values, np.ones_like(values))
        for name, lane in (
            ("least", min(found, key=lambda c: found[c][0])),
            ("largest", max(found, key=lambda c: found[c][0])),
        ):
            verdict = CONFIRMED if found[lane][1] >= 1 else REFUTED
            yield claim, verdict, f"{name} variance ratio of a class (class {lane}), {setting}", found[lane]
        whole = table[
            (table.part == "antithetic") & (table.lane == "all") & (table.setting == setting)
        ].value.to_numpy()
        yield claim, MEASURED, f"variance ratio of all, {setting}", ratio_interval(whole, np.ones_like(whole))


def gradients(table: pd.DataFrame) -> Iterator[tuple[str, str, str, tuple[float, float, float]]]:
    whole = _values(table, "gradient norm", lane="all", setting="")
    for lane in (HEAD, *TAIL_CLASSES):
        ratio = ratio_interval(_values(table, "gradient norm", lane=lane), whole)
        verdict = MEASURED if lane == HEAD else _size(ratio, LARGE)
        quantity = f"gradient norm of class {lane} over that of the whole"
        yield "tail classes are not at a stationary point of theirs", verdict, quantity, ratio


def confidence(table: pd.DataFrame) -> Iterator[tuple[str, str, str, tuple[float, float, float]]]:
    claim = "curvature follows the level of the loss"
    for measure in ("lambda_max", "loss", "held-out loss"):
        of_head, of_tail = (_values(table, measure, part="slices", lane=lane) for lane in (HEAD, TAIL))
        ratio = ratio_interval(of_tail, of_head)
        yield claim, MEASURED, f"{measure}, class {TAIL} over class {HEAD}", ratio
        yield claim, MEASURED, f"{measure} of class {TAIL}", mean_interval(of_tail)


CLAIMS: tuple[Callable[[pd.DataFrame], Iterator[tuple[str, str, str, tuple[float, float, float]]]], ...] = (
    frozen_against_recalibrated,
    sources_of_error,
    hidden_saddles,
    escape,
    antithetic,
    gradients,
    confidence,
)


def conclude(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per claim and training; ``table`` holds the rows of the study."""
    found = []
    for training, rows in table.groupby("training", sort=False):
        for claims in CLAIMS:
            for claim, verdict, quantity, (value, low, high) in claims(rows):
                found.append(Conclusion(str(training), claim, verdict, quantity, value, low, high))
    return pd.DataFrame(found)
