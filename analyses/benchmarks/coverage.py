"""How often intervals over images hold the truth, on networks whose surface on a whole population is known.

    python -m analyses.benchmarks.coverage --out CSV [--trials 200]

Two networks (SGD and SAM) are trained for seconds on digits with 134 to 3 images per class. The 1,417 digits that they were
not trained on, 44 to 177 of a class, are the population: their losses on a plane of filter-normalised directions are computed
once, their class means are the truth. A trial draws images of each class with replacement, as many as the design says, and
makes intervals at nominal 0.95 of what a measurement on these images would keep; no forward pass is needed. Under three
minutes on one core.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import scipy.stats
import torch
import xarray as xr
from sklearn.datasets import load_digits

import landscape
from landscape.checkpoint import load_weights, read_checkpoint
from landscape.models import build_model
from landscape.randomness import numpy_stream
from landscape.surface import cube_lanes, random_directions
from landscape.surface.cube import points_of
from landscape.surface.resampling import METHODS, Intervals, Method, Read, image_intervals, increases, resampler_of
from landscape.training import TrainSpec

IMBALANCE = 44.0
EPOCHS = 30
ALPHAS, BETAS = (-0.3, -0.1, 0.0, 0.05, 0.2, 0.5, 1.0), (0.0, 0.3)
LONG_TAILED = (134, 88, 57, 37, 24, 16, 10, 7, 4, 3)
DESIGNS: dict[str, tuple[int, ...]] = {
    **{f"{n} of each class": (n,) * 10 for n in (4, 5, 10, 20, 50)},
    "long-tailed": LONG_TAILED,
}
LEVEL, NUM_RESAMPLES = 0.95, 500
COLUMNS = (
    "quantity",
    "design",
    "lanes",
    "images",
    "method",
    "coverage",
    "worst_coverage",
    "missed_below",
    "missed_above",
    "width",
    "pairing_gain",
    "pairing_gain_near",
)
NEAREST = ALPHAS.index(0.05)  # the point where pairing should gain most

Row = dict[str, object]
Found = dict[str, dict[str, list[Intervals]]]  # quantity -> method -> trials


def trained(optimizer: str, folder: Path) -> torch.nn.Module:
    """Return a small network after a short training."""
    spec = TrainSpec(imbalance_ratio=IMBALANCE, optimizer=optimizer, epochs=EPOCHS)
    checkpoint = read_checkpoint(landscape.train(spec, folder / optimizer))
    model = build_model(spec.model, num_classes=10, in_channels=1, image_size=8)
    load_weights(model, checkpoint)
    return model.eval()


@torch.no_grad()
def population(model: torch.nn.Module) -> xr.Dataset:
    """Return the losses of every digit on a plane through the weights."""
    data = landscape.load_dataset("digits-lt", imbalance_ratio=IMBALANCE)
    digits = load_digits()
    seen = {image.numpy().tobytes() for image in data.train.images}
    pixels = digits.images.astype(np.uint8)[:, None]
    order = np.array([i for i in np.argsort(digits.target, kind="stable") if pixels[i].tobytes() not in seen])
    images = data.normalise(torch.as_tensor(pixels[order]))
    labels = torch.as_tensor(digits.target[order])
    risk = landscape.ModelRisk(model, (images, labels), groups=data.groups.members)
    axes = random_directions(risk, num=2, seed=0, pair=0)
    losses = np.empty((1, len(BETAS), len(ALPHAS), len(labels)), dtype=np.float32)
    for i, beta in enumerate(BETAS):
        for j, alpha in enumerate(ALPHAS):
            point = risk.theta + alpha * axes[0] + beta * axes[1]
            losses[0, i, j] = torch.cat([risk.per_example(point, rows) for rows in risk.row_chunks()]).numpy()
    return xr.Dataset(
        {"loss": (("pair", "beta", "alpha", "example"), losses)},
        coords={
            "beta": list(BETAS),
            "alpha": list(ALPHAS),
            "example_class": ("example", labels.numpy()),
            "example_row": ("example", order),
        },
        attrs={"groups": dict(data.groups.members), "class_names": [str(c) for c in range(10)]},
    )


def drawn(cubes: Sequence[xr.Dataset], counts: Sequence[int], trial: int) -> list[xr.Dataset]:
    """Return the same images, drawn with replacement, of every population."""
    classes = cubes[0].example_class.values
    generator = numpy_stream(trial, f"coverage/{'-'.join(map(str, counts))}")
    rows = np.concatenate([generator.choice(np.flatnonzero(classes == c), size=n) for c, n in enumerate(counts)])
    return [cube.isel(example=rows) for cube in cubes]


def readers(cubes: Sequence[xr.Dataset]) -> dict[str, Read]:
    """Return the two quantities: the first network's increase, and how far it exceeds the second's."""
    own, other = (increases(cube.loss, cube.loss.sel(alpha=0.0, beta=0.0)) for cube in cubes)
    return {"increase": own, "difference of increases": lambda points: own(points) - other(points)}


def student(found: Intervals) -> Intervals:
    """Return the interval from the standard errors alone."""
    half = found.stderr * scipy.stats.t.ppf((1 + LEVEL) / 2, np.where(found.degrees > 0, found.degrees, 1.0))
    return replace(found, low=found.mean - half, high=found.mean + half)


def unpaired_stderr(cubes: Sequence[xr.Dataset], weights: np.ndarray) -> dict[str, np.ndarray]:
    """Return the (P, L) standard errors if every loss came from images of its own."""
    squares = []
    for cube in cubes:
        flat, classes = points_of(cube.loss).astype(np.float64), cube.example_class.values
        variances = [flat[:, classes == c].var(1, ddof=1) / (classes == c).sum() for c in range(weights.shape[1])]
        one = np.stack(variances, 1) @ (weights**2).T
        centre = BETAS.index(0.0) * len(ALPHAS) + ALPHAS.index(0.0)
        squares.append(one + one[centre])
    return {"increase": np.sqrt(squares[0]), "difference of increases": np.sqrt(squares[0] + squares[1])}


def trials_of(cubes: Sequence[xr.Dataset], counts: Sequence[int], trials: int) -> Iterator[tuple[str, str, Intervals]]:
    """Yield (quantity, method, intervals) of every trial; the unpaired ones carry their standard error only."""
    num_points = len(ALPHAS) * len(BETAS)
    for trial in range(trials):
        samples = drawn(cubes, counts, trial)
        lanes = cube_lanes(samples[0])
        resampler = resampler_of(samples[0], num_resamples=NUM_RESAMPLES, level=LEVEL, seed=trial)
        unpaired = unpaired_stderr(samples, lanes.weights.numpy())
        for quantity, read in readers(samples).items():
            methods: Sequence[Method] = METHODS
            for method in methods:
                found = image_intervals(read, num_points, lanes, replace(resampler, method=method))
                yield quantity, method, found
            yield quantity, "student", student(found)
            yield quantity, "unpaired", replace(found, stderr=unpaired[quantity])


def rows_of(cubes: Sequence[xr.Dataset], design: str, counts: Sequence[int], trials: int) -> list[Row]:
    """Count over trials, points and lanes of a kind."""
    whole = cubes[0]
    lanes = cube_lanes(drawn(cubes, counts, 0)[0])
    weights, classes = lanes.weights.numpy(), whole.example_class.values
    truths = {}
    for quantity, read in readers(cubes).items():
        values = read(slice(0, len(ALPHAS) * len(BETAS)))
        truths[quantity] = np.stack([values[:, classes == c].mean(1) for c in range(10)], 1) @ weights.T
    found: Found = {}
    for quantity, method, intervals in trials_of(cubes, counts, trials):
        found.setdefault(quantity, {}).setdefault(method, []).append(intervals)
    kinds: dict[tuple[str, str], list[int]] = {}
    for position, kind in enumerate(lanes.kinds):
        name = f"{lanes.groups[position]} classes" if kind == "class" else lanes.names[position]
        kinds.setdefault((name, str(lanes.num_examples[position])), []).append(position)
    rows = []
    for quantity, methods in found.items():
        moving = np.abs(truths[quantity]).max(1) > 0  # all points but the weights themselves
        for (kind, images), positions in kinds.items():
            select = np.ix_(moving, positions)
            truth = truths[quantity][select]
            paired = np.stack([i.stderr[select] for i in methods["student"]])
            unpaired = np.stack([i.stderr[select] for i in methods["unpaired"]])
            with np.errstate(invalid="ignore", divide="ignore"):  # small samples of one value at a point
                gains = unpaired / paired
            near = gains[:, np.flatnonzero(moving).tolist().index(NEAREST)]
            gain = {"pairing_gain": f"{np.nanmedian(gains):.2f}", "pairing_gain_near": f"{np.nanmedian(near):.2f}"}
            for method in (*METHODS, "student"):
                low = np.stack([i.low[select] for i in methods[method]])
                high = np.stack([i.high[select] for i in methods[method]])
                below, above = truth < low, truth > high
                hits = ~(below | above)
                row: Row = {"quantity": quantity, "design": design, "lanes": kind, "images": images, "method": method}
                row |= {"coverage": f"{hits.mean():.3f}", "worst_coverage": f"{hits.mean(0).min():.3f}"}
                row |= {"missed_below": f"{below.mean():.3f}", "missed_above": f"{above.mean():.3f}"}
                row["width"] = f"{np.median((high - low).mean(0) / paired.mean(0)):.2f}"
                rows.append(row | gain)
    return rows


def environment(trials: int, seconds: float) -> dict[str, object]:
    """Return what the numbers depend on."""
    return {
        "trials": trials,
        "resamples": NUM_RESAMPLES,
        "level": LEVEL,
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "numpy": metadata.version("numpy"),
        "scipy": metadata.version("scipy"),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "cpu_seconds": round(seconds),
    }


def main() -> None:
    """Run everything and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=200)
    args = parser.parse_args()
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        cubes = [population(trained(optimizer, Path(folder))) for optimizer in ("sgd", "sam")]
    rows: list[Row] = []
    for design, counts in DESIGNS.items():
        rows += rows_of(cubes, design, counts, args.trials)
        print(f"{design}: {time.process_time() - start:.0f} s", flush=True)
    extra = environment(args.trials, time.process_time() - start)
    with args.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*COLUMNS, *extra])
        writer.writeheader()
        writer.writerows({**row, **extra} for row in rows)


if __name__ == "__main__":
    main()
