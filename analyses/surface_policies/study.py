"""The measurements: BatchNorm policies, random slices against eigenvectors, antithetic draws, gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import stats

import landscape as ls
from landscape.data import Split
from landscape.loading import CheckpointSource, load_checkpoint
from landscape.perturbation import PerturbationOptions
from landscape.randomness import numpy_stream
from landscape.risk import ClassRisk, ModelRisk
from landscape.spectrum import SpectrumOptions, extreme_directions
from landscape.surface import random_directions
from landscape.training import TrainSpec

IMBALANCE_RATIO = 32.0  # 134 images of the class "0" down to 4 of the class "9"
HEAD, TAIL = "0", "9"
EPOCHS = {"short": 15, "long": 60}

DISTANCES = (0.0, 0.1, 0.25, 0.5, 1.0)  # filter-normalised
POLICIES = ("frozen", "recalibrated, long-tailed", "recalibrated, balanced")
NUM_DIRECTIONS = 20
# As many images as the long-tailed set (408) holds, so that only their classes differ.
BALANCED_PER_CLASS = 41

NUM_SLICES = 30
STEPS = (-0.4, -0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3, 0.4)  # Euclidean, weight units
FITTED_AT = 0.2

NUM_PAIRS = 100
SIGMA, RADIUS = 0.01, 0.1
CONFIDENCE = 0.95
NUM_BOOTSTRAP = 2000


@dataclass(frozen=True)
class Row:
    """One number and what is known about it.

    ``low`` and ``high`` are the ends of what ``interval`` names; an exact evaluation has neither. ``at`` is a distance:
    filter-normalised in the part ``batchnorm``, Euclidean in ``slices`` and ``escape``.
    """

    training: str
    seed: int
    part: str
    lane: str
    setting: str
    measure: str
    at: float
    value: float
    low: float = np.nan
    high: float = np.nan
    interval: str = "exact"


@dataclass(frozen=True)
class Subject:
    """One trained network with its risks: on its training images, and on the balanced test images per policy."""

    training: str
    seed: int
    weight_decay: float
    train: ModelRisk
    held_out: ModelRisk
    held_out_balanced: ModelRisk

    def row(self, part: str, lane: str, setting: str, measure: str, value: float, **more: float | str) -> Row:
        fields = {"at": np.nan, **more}
        return Row(self.training, self.seed, part, lane, setting, measure, value=float(value), **fields)  # type: ignore[arg-type]


def train_subject(training: str, seed: int, folder: Path, *, epochs: int | None = None) -> Subject:
    """Train one network by the recipe of the digits, with plain cross-entropy and SGD, and return its risks."""
    num_epochs = epochs or EPOCHS[training]
    spec = TrainSpec(imbalance_ratio=IMBALANCE_RATIO, epochs=num_epochs, seed=seed, evaluate_every=num_epochs)
    loaded = load_checkpoint(CheckpointSource(ls.train(spec, folder / f"{training}-{seed}")))
    data = loaded.dataset
    balanced = balanced_images()

    def risk_on(split: Split, calibration: torch.Tensor) -> ModelRisk:
        return ModelRisk(
            loaded.model,
            split,
            transform=data.normalise,
            class_names=data.class_names,
            train_counts=data.train_counts,
            groups=data.groups.members,
            calibration=calibration,
        )

    return Subject(
        training,
        seed,
        weight_decay=spec.weight_decay,
        train=risk_on(data.train, data.train.images),
        held_out=risk_on(data.test, data.train.images),
        held_out_balanced=risk_on(data.test, balanced),
    )


def balanced_images() -> torch.Tensor:
    """Return images (M, 1, 8, 8) of all classes in equal number, none of them a test image."""
    split = ls.load_dataset("digits-lt", imbalance_ratio=1.0).train
    rows = [torch.nonzero(split.labels == c)[:BALANCED_PER_CLASS, 0] for c in range(10)]
    return split.images[torch.cat(rows)]


# ---- 1. BatchNorm -------------------------------------------------------------------------------------------------


def batchnorm_rows(subject: Subject, *, num_directions: int = NUM_DIRECTIONS) -> Iterator[Row]:
    """Yield head and tail losses on the balanced test images at growing distances, by policy.

    Every policy sees the same directions, every network others: what differs between networks holds both.
    """
    for policy in POLICIES:
        risk = subject.held_out_balanced if policy.endswith("balanced") else subject.held_out
        surface = ls.measure_surface(
            risk,
            "head,tail",
            x=DISTANCES,
            num_pairs=num_directions,
            seed=subject.seed,
            batchnorm="frozen" if policy == "frozen" else "recalibrate",
        )
        for lane in ("head", "tail"):
            for distance in DISTANCES:
                values = surface.loss.sel(lane=lane, alpha=distance).values
                mean, spread = values.mean(), values.std(ddof=1) if distance else np.nan
                yield subject.row(
                    "batchnorm",
                    lane,
                    policy,
                    "loss",
                    mean,
                    at=distance,
                    low=mean - spread,
                    high=mean + spread,
                    interval=f"sd of {num_directions} directions" if distance else "exact",
                )
    yield from _image_error_rows(subject, num_directions)


def _image_error_rows(subject: Subject, num_directions: int) -> Iterator[Row]:
    """Yield the standard error over images of the increase of the loss at one distance, root mean square over directions."""
    risk, distance = subject.held_out, 0.5
    centre = _losses_of_images(risk, risk.theta)
    found = []
    for pair in range(num_directions):
        (direction,) = random_directions(risk, num=1, seed=subject.seed, pair=pair)
        found.append(_losses_of_images(risk, risk.theta + distance * direction) - centre)
    increases = torch.stack(found)  # (directions, N)
    for lane in ("head", "tail"):
        classes = risk.groups[lane]
        variance = torch.zeros(len(increases), dtype=torch.float64)
        for c in classes:  # classes are strata
            part = increases[:, risk.labels == c]
            variance += part.var(1) / part.shape[1] / len(classes) ** 2
        yield subject.row(
            "batchnorm",
            lane,
            "frozen",
            "stderr over images",
            float(variance.mean().sqrt()),
            at=distance,
            interval=f"root mean square over {num_directions} directions",
        )


@torch.no_grad()
def _losses_of_images(risk: ModelRisk, theta: torch.Tensor) -> torch.Tensor:
    return torch.cat([risk.per_example(theta, rows) for rows in risk.row_chunks()]).double()


# ---- 2. slices and eigenvectors -----------------------------------------------------------------------------------


def slice_rows(subject: Subject, *, num_slices: int = NUM_SLICES) -> Iterator[Row]:
    """Yield both ends of the spectrum, the mean eigenvalue and the curvature along random directions, of three lanes."""
    risk, lanes = subject.train, (HEAD, TAIL, "all")
    spectrum = ls.measure_spectrum(risk, ",".join(lanes), options=SpectrumOptions(num_probes=0, context=False))
    held_out = {c: float(v) for c, v in zip(risk.class_names, subject.held_out.losses(risk.theta))}
    held_out["all"] = float(np.mean(list(held_out.values())))
    slices = [random_directions(risk, num=1, seed=subject.seed, pair=pair)[0] for pair in range(num_slices)]
    length = float(torch.linalg.vector_norm(slices[0]))  # the same for all: that of the filters
    lines = ls.measure_surface(
        risk, ",".join(lanes), x=np.array(STEPS) / length, num_pairs=num_slices, seed=subject.seed
    )
    lines = lines.assign_coords(alpha=list(STEPS))
    for lane in lanes:
        of_lane = spectrum.sel(lane=lane)
        for end in ("lambda_min", "lambda_max"):
            value, residual = float(of_lane[end]), float(of_lane[f"{end}_residual"])
            yield subject.row(
                "slices", lane, "", end, value, low=value - residual, high=value + residual, interval="residual"
            )
        mean, error = (float(of_lane[key]) / len(risk.theta) for key in ("trace", "trace_stderr"))
        yield subject.row(
            "slices", lane, "", "trace / P", mean, low=mean - error, high=mean + error, interval="rounding"
        )
        yield subject.row("slices", lane, "", "loss", float(of_lane.loss))
        yield subject.row("slices", lane, "", "held-out loss", held_out[lane])
        weights = torch.from_numpy(_weights_of(risk, lane))[None]
        yield from _curvature_rows(subject, lane, curvatures(risk, weights, torch.stack(slices)), "autograd")
        losses = lines.loss.sel(lane=lane)
        ends, centre = losses.sel(alpha=[-FITTED_AT, FITTED_AT]), float(losses.sel(alpha=0.0)[0])
        second = (ends.sum("alpha") - 2 * centre) / FITTED_AT**2
        yield from _curvature_rows(subject, lane, second.values, f"difference over {FITTED_AT:g}")
        falls = int((ends < centre).all("alpha").sum())
        yield subject.row("slices", lane, "", "random slices that fall both ways", falls, at=FITTED_AT)
        for step in STEPS:
            at = losses.sel(alpha=step).values
            yield subject.row(
                "slices",
                lane,
                "random",
                "loss along",
                at.mean(),
                at=step,
                low=at.min(),
                high=at.max(),
                interval=f"range of {num_slices} directions",
            )


def _weights_of(risk: ClassRisk, lane: str) -> np.ndarray:
    counts = risk.class_counts.double().cpu().numpy()
    return counts / counts.sum() if lane == "all" else np.array([name == lane for name in risk.class_names], float)


def curvatures(risk: ClassRisk, weights: torch.Tensor, directions: torch.Tensor) -> np.ndarray:
    r"""Return :math:`d^\top H d / \|d\|^2` (P,) of one lane (1, C) along directions (P, n)."""
    with risk.hessian(risk.theta, weights) as product:
        images = product(directions[None])[0]
    d = directions.double()
    return ((d * images.double()).sum(1) / (d * d).sum(1)).numpy()


def _curvature_rows(subject: Subject, lane: str, values: np.ndarray, how: str) -> Iterator[Row]:
    yield subject.row(
        "slices",
        lane,
        how,
        "curvature along random directions",
        values.mean(),
        low=values.min(),
        high=values.max(),
        interval=f"range of {len(values)} directions",
    )
    yield subject.row("slices", lane, how, "random directions of negative curvature", int((values < 0).sum()))


def escape_rows(subject: Subject) -> Iterator[Row]:
    """Yield the losses along the tail class's v_min, downhill first order to the positive side."""
    risk = subject.train
    v_min = extreme_directions(risk, TAIL).v_min
    gradient = risk.gradients(risk.theta, torch.from_numpy(_weights_of(risk, TAIL))[None])[0]
    slope = float(gradient.double() @ v_min.double())
    v_min = v_min * (-1.0 if slope > 0 else 1.0)
    line = ls.measure_surface(risk, f"{TAIL},head,all", directions=[v_min], x=STEPS).isel(pair=0)
    for lane in (TAIL, "head", "all"):
        for step in STEPS:
            yield subject.row(
                "escape", lane, "v_min", "loss along", float(line.loss.sel(lane=lane, alpha=step)), at=step
            )


# ---- 3. antithetic draws ------------------------------------------------------------------------------------------


def gain(draws: np.ndarray) -> float:
    r"""Return how many times smaller the variance of the mean is with antithetic pairs than with as many free draws.

    With m = (X + X') / 2 of a pair, :math:`\mathrm{Var}(X) / (2 \mathrm{Var}(m)) = 1 / (1 + \mathrm{corr}(X, X'))`: without
    limit where the increase is odd in the draw, and 1/2, a loss, where it is even.

    Parameters
    ----------
    draws
        (2K,) increases; entries 2k and 2k + 1 are a pair.
    """
    return float(_gain(draws[0::2], draws[1::2]))


def _gain(plus: np.ndarray, minus: np.ndarray, axis: int = -1) -> np.ndarray:
    single = (plus.var(axis, ddof=1) + minus.var(axis, ddof=1)) / 2
    return np.asarray(single / (2 * ((plus + minus) / 2).var(axis, ddof=1)))


def antithetic_rows(subject: Subject, *, num_pairs: int = NUM_PAIRS) -> Iterator[Row]:
    """Yield the gain per class, group and whole, for Gaussian noise and for filter-normalised directions."""
    options = PerturbationOptions(radii=(RADIUS,), sigmas=(SIGMA,), num_draws=2 * num_pairs, rhos=())
    found = ls.measure_perturbation(subject.train, options=options, seed=subject.seed)
    settings = {
        f"Gaussian, sigma = {SIGMA:g}": found.gaussian_loss_increase.sel(sigma=SIGMA),
        f"filter-normalised, radius = {RADIUS:g}": found.loss_increase.sel(radius=RADIUS),
    }
    for setting, increases in settings.items():
        for lane in found.lane.values:
            draws = increases.sel(lane=lane).values
            interval = stats.bootstrap(
                (draws[0::2], draws[1::2]),
                _gain,
                n_resamples=NUM_BOOTSTRAP,
                confidence_level=CONFIDENCE,
                paired=True,
                vectorized=True,
                rng=numpy_stream(0, f"surface_policies/{subject.training}/{subject.seed}/{setting}/{lane}"),
            ).confidence_interval
            yield subject.row(
                "antithetic",
                str(lane),
                setting,
                "variance ratio",
                gain(draws),
                low=interval.low,
                high=interval.high,
                interval=f"{CONFIDENCE:.0%} bootstrap of {num_pairs} pairs",
            )


# ---- 4. gradients -------------------------------------------------------------------------------------------------


def gradient_rows(subject: Subject) -> Iterator[Row]:
    """Yield the norm of every class's gradient and of the whole's, and of what training descends: with weight decay."""
    risk = subject.train
    eye = torch.eye(len(risk.class_names), dtype=torch.float64)
    norms = torch.linalg.vector_norm(risk.gradients(risk.theta, eye).double(), dim=1)
    for name, norm in zip(risk.class_names, norms.tolist()):
        yield subject.row("gradients", name, "", "gradient norm", norm)
    whole = risk.gradients(risk.theta, torch.from_numpy(_weights_of(risk, "all"))[None])[0].double()
    yield subject.row("gradients", "all", "", "gradient norm", float(whole.norm()))
    yield subject.row(
        "gradients",
        "all",
        "with weight decay",
        "gradient norm",
        float((whole + subject.weight_decay * risk.theta.double()).norm()),
    )


def study(folder: Path, *, num_seeds: int = 8) -> Iterator[Row]:
    """Yield all rows; ``folder`` holds the trained networks."""
    for training in EPOCHS:
        for seed in range(num_seeds):
            subject = train_subject(training, seed, folder)
            for part in (batchnorm_rows, slice_rows, escape_rows, antithetic_rows, gradient_rows):
                yield from part(subject)
