"""Do the intervals of lambda_min and lambda_max hold the ends of the Hessian, and what does that cost?

    python -m analyses.benchmarks.ends --out CSV [--suites planted,digits,small] [--cifar DIR --checkpoints FILE ...]

Every lane is measured as a user measures it (defaults, the model's float32), and compared with ARPACK's ends of the same Hessian
in float64. Suites: ``planted`` are diagonal operators with a prescribed lower end: two lowest eigenvalues 0.1 to 10 % apart,
clusters of twenty, start vectors with a thousandth of the usual part of the lowest; ``digits`` are the networks of the main
job; ``small`` are MLPs with GELU and with LayerNorm; ``cifar`` are CIFAR-10 ResNet-20 checkpoints with 5 and 50 images of a class.
A row says what was printed, what is true, whether the interval holds it, and the products that were spent.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import scipy.sparse.linalg
import torch
from torch import Tensor, nn

import landscape as ls
from landscape.randomness import stream
from landscape.risk import ClassRisk, LaneChoice, lanes_of
from landscape.spectrum.lanczos import sphere
from landscape.spectrum.options import SpectrumOptions
from landscape.training import TrainSpec

COLUMNS = (
    *("suite", "operator", "lane", "num_examples", "num_steps", "num_hvps"),
    *(f"lambda_{end}{part}" for end in ("min", "max") for part in ("", "_low", "_high", "_residual", "_true")),
    *("holds_min", "holds_max", "error_min", "error_max"),
)
OPTIMIZERS = ("sgd", "sam", "asam", "imbsam", "ssesam", "ccsam", "gnm")
OPTIONS = SpectrumOptions(context=False, num_bootstrap=0)
NUM_PLANTED = 200
PLANTED_SIZE = 2000

Row = dict[str, object]


def true_ends(risk: ClassRisk, row: Tensor) -> tuple[float, float]:
    """Return both ends of a lane's Hessian by ARPACK in float64."""
    exact = risk if risk.theta.dtype == torch.float64 else risk.in_float64()
    size = len(exact.theta)
    with exact.hessian(exact.theta, row[None]) as product:
        operator = scipy.sparse.linalg.LinearOperator(
            (size, size),
            matvec=lambda v: product(torch.as_tensor(v.reshape(1, 1, -1), dtype=torch.float64))[0, 0].cpu().numpy(),
            dtype=np.float64,
        )
        start = np.random.default_rng(0).standard_normal(size)
        pairs = min(3, size - 1)
        low, high = (
            scipy.sparse.linalg.eigsh(
                operator, k=pairs, which=which, ncv=40, tol=1e-9, v0=start, return_eigenvectors=False, maxiter=4000
            )
            for which in ("SA", "LA")
        )
    return float(low.min()), float(high.max())


def measured(
    suite: str,
    operator: str,
    risk: ClassRisk,
    lanes: LaneChoice | None,
    truth: dict[str, tuple[float, float]] | None = None,
) -> Iterator[Row]:
    """Yield a row for each lane of a risk."""
    result = ls.measure_spectrum(risk, lanes, options=OPTIONS, seed=0)
    chosen = lanes_of(risk, lanes)
    for index, name in enumerate(chosen.names):
        one = result.isel(lane=index)
        ends = dict(zip(("min", "max"), truth[name] if truth else true_ends(risk, chosen.weights[index])))
        row: Row = {
            "suite": suite,
            "operator": operator,
            "lane": name,
            "num_examples": int(one.num_examples),
            "num_steps": int(one.num_steps_extremes),
            "num_hvps": int(one.num_hvps),
        }
        for end, true in ends.items():
            low, high, value = (float(one[f"lambda_{end}{part}"]) for part in ("_low", "_high", ""))
            row |= {f"lambda_{end}": value, f"lambda_{end}_low": low, f"lambda_{end}_high": high}
            row |= {f"lambda_{end}_residual": float(one[f"lambda_{end}_residual"]), f"lambda_{end}_true": true}
            size = 1e-9 * max(abs(true) for true in ends.values())  # what ARPACK's own tolerance leaves
            row[f"holds_{end}"] = low - size <= true <= high + size
            row[f"error_{end}"] = abs(value - true) / abs(true) if true else abs(value)
        yield row


def planted() -> Iterator[Row]:
    """Yield rows of operators whose lower end is made to be missed."""
    for trial in range(NUM_PLANTED):
        draws = np.random.default_rng(trial)
        gap = 10 ** draws.uniform(-3, -1)
        cluster = 20 if trial % 4 == 3 else 1
        bulk = draws.standard_cauchy(PLANTED_SIZE) * 1e-3
        bulk = np.clip(
            np.concatenate([bulk, np.exp(draws.normal(size=100)), -0.3 * np.exp(draws.normal(size=50))]), -2, 40
        )
        lowest = -4.5
        seconds = lowest * (1 - gap) * (1 - 1e-4 * np.arange(cluster))
        values = torch.tensor(np.concatenate([[lowest], seconds, bulk, [60.0, 90.0]]))
        size = len(values)
        # A Householder reflection takes e_1 to a chosen direction: the lowest eigenvector has 1e-3 of its usual part of the start.
        target = torch.zeros(size, dtype=torch.float64)
        target[0] = 1.0
        if trial % 2:
            start = sphere(1, size, stream(0, "spectrum/all/extremes"))[0]
            mirror = start.clone()
            mirror[0] *= 1e-3
            mirror = mirror / mirror.norm() * start.norm()
        else:
            start = mirror = target
        axis = start - mirror
        norm = float(axis @ axis)

        def loss(x: Tensor, axis: Tensor = axis, norm: float = norm, values: Tensor = values) -> Tensor:
            turned = x - axis.to(x) * (2 * (axis.to(x) @ x) / norm) if norm else x
            return (values.to(x) * turned * turned).sum()[None] / 2

        risk = ls.AnalyticRisk(loss, torch.zeros(size, dtype=torch.float64))
        name = f"gap {gap:.2g}{', cluster' if cluster > 1 else ''}{', poor start' if trial % 2 else ''}"
        yield from measured("planted", name, risk, "all", {"all": (lowest, 90.0)})


def digits(runs: Path | None) -> Iterator[Row]:
    """Yield rows of the main job's networks, trained or from its folder."""
    with tempfile.TemporaryDirectory() as folder:
        for optimizer in OPTIMIZERS:
            spec = TrainSpec(optimizer=optimizer, epochs=60)
            done = runs / optimizer / "checkpoint.safetensors" if runs else None
            risk = ls.load_risk(done or ls.train(spec, Path(folder) / optimizer))
            yield from measured("digits", optimizer, risk, None)


def small(seeds: Sequence[int]) -> Iterator[Row]:
    """Yield rows of small networks with other layers on the digits."""
    data = ls.load_dataset("digits-lt")
    inputs, labels = data.normalise(data.train.images).flatten(1), data.train.labels
    for seed, name, epochs in itertools.product(seeds, ("GELU", "LayerNorm"), (20, 200)):
        torch.manual_seed(seed)
        layer = nn.GELU() if name == "GELU" else nn.Sequential(nn.LayerNorm(48), nn.Tanh())
        model = nn.Sequential(nn.Linear(64, 48), layer, nn.Linear(48, 48), nn.GELU(), nn.Linear(48, 10))
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(epochs):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
        risk = ls.ModelRisk(model, (inputs, labels), groups=data.groups.members)
        yield from measured("small", f"{name}, {epochs} steps, seed {seed}", risk, None)


def cifar(checkpoints: Sequence[Path], data_dir: Path, images: Sequence[int]) -> Iterator[Row]:
    """Yield rows of CIFAR-10 ResNet-20 checkpoints."""
    for path in checkpoints:
        for count in images:
            risk = ls.load_risk(path, model="resnet20", dataset="cifar10-lt", data_dir=data_dir, max_per_class=count)
            yield from measured("cifar", path.stem, risk, "classes")


def main() -> None:
    """Measure and write rows as they come."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--suites", default="planted,digits,small")
    parser.add_argument("--runs", type=Path, help="a finished main job")
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--images", default="5,50")
    parser.add_argument("--seeds", default="0,1,2,3", help="of the small networks")
    parser.add_argument("--checkpoints", type=Path, nargs="*", default=[])
    given = parser.parse_args()
    counts = [int(n) for n in given.images.split(",")]
    suites = {
        "planted": planted,
        "digits": lambda: digits(given.runs),
        "small": lambda: small([int(n) for n in given.seeds.split(",")]),
        "cifar": lambda: cifar(given.checkpoints, given.cifar, counts),
    }
    rows: list[Row] = []
    with given.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for suite in given.suites.split(","):
            for row in suites[suite]():
                rows.append(row)
                writer.writerow({key: f"{v:.9g}" if isinstance(v, float) else v for key, v in row.items()})
                file.flush()
    for end in ("min", "max"):
        held = sum(bool(row[f"holds_{end}"]) for row in rows)
        worst = max(float(row[f"error_{end}"]) for row in rows)
        print(
            f"lambda_{end}: {held} of {len(rows)} intervals hold the end; largest relative error of the value {worst:.2g}"
        )
    print(f"products per lane: median {np.median([int(str(row['num_hvps'])) for row in rows]):g}")


if __name__ == "__main__":
    main()
