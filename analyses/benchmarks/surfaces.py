"""What a surface of every class costs: against a bare forward loop, a plain eager loop, and other packages.

    python -m analyses.benchmarks.surfaces --data-dir DIR --checkpoint FILE --out CSV

A long-tailed ResNet-20 on real CIFAR-10-LT training images, a filter-normalised random plane, float32. Two questions:

``engine``: seconds of one grid point with all images, in turn: the forward passes alone (our network, our chunks; no
weights set, no losses), ours, ours as a preview, and the plainest loop (weights copied in, batches of 128, mean loss).
``peers``: a plane of each of ten classes: the plain loop, Landscaper and loss-landscapes go through the classes one by
one, ours computes all in one walk. Their answers are asserted first, on a small grid with Landscaper's own scaling
undone; then small planes are timed in turn. A row holds the ratio of medians (theirs over ours) and its extremes.
``refined``: a whole plane of 51 by 51 once: all cells, refined to a checked 1 %, and the other packages.
"""

from __future__ import annotations

import argparse
import csv
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from analyses.benchmarks.surface_peers import PEERS, images_of, plain_network, tree_of
from landscape import load_risk, measure_surface
from landscape.risk import ModelRisk, lanes_of, precise_arithmetic
from landscape.risk.evaluator import PointEvaluator
from landscape.risk.inputs import call_with
from landscape.risk.points import walk_of
from landscape.surface import random_directions

MODEL = "resnet20"
PLAIN_BATCH = 128
COLUMNS = (
    "question",
    "images_per_class",
    "grid",
    "side",
    "against",
    "ratio",
    "low",
    "high",
    "seconds",
    "rounds",
    "note",
)

Run = Callable[[], Any]


def timed(runs: dict[str, Run], rounds: int, device: torch.device) -> dict[str, np.ndarray]:
    """Return the seconds (rounds,) of each run, taken in turn after one warm-up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(-1, rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number >= 0:
                times[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in times.items()}


def rows_of(
    question: str, images: int, grid: str, times: dict[str, np.ndarray], pairs: dict, notes: dict
) -> list[dict]:
    """Return one row per (side, against): how many times the second takes as long as the first."""
    rows = []
    for side, against in pairs:
        each = times[against] / times[side]
        ratio = np.median(times[against]) / np.median(times[side])
        values = (question, images, grid, side, against, f"{ratio:.3f}", f"{each.min():.3f}", f"{each.max():.3f}")
        seconds = f"{np.median(times[side]):.4g}"
        rows.append(dict(zip(COLUMNS, (*values, seconds, len(each), notes.get((side, against), "")))))
        print("  ", *rows[-1].values(), flush=True)
    return rows


def plain_point(risk: ModelRisk) -> Run:
    """Return the plainest evaluation of all images at a point: weights copied in, batches in order, class sums."""
    model = plain_network(risk, MODEL).to(risk.device)
    inputs = risk._examples.read(slice(0, len(risk.labels)), risk.dtype)
    batches = [
        (inputs[k : k + PLAIN_BATCH], risk.labels[k : k + PLAIN_BATCH]) for k in range(0, len(inputs), PLAIN_BATCH)
    ]
    direction = random_directions(risk, num=1, seed=0, pair=0)[0]
    state = {"alpha": 0.0}

    def run() -> np.ndarray:
        state["alpha"] += 1e-3
        theta = risk.theta + state["alpha"] * direction
        sums = torch.zeros(10, device=risk.device)
        with torch.inference_mode():
            for p, part in zip(model.parameters(), risk.layout.unflatten(theta)):
                p.copy_(part)
            for images, labels in batches:
                losses = nn.functional.cross_entropy(model(images), labels, reduction="none")
                sums.index_add_(0, labels, losses)
        return (sums / risk._examples.counts.to(sums)).cpu().numpy()

    return run


def our_point(risk: ModelRisk, precision: str) -> Run:
    """Return our evaluation of a point, lanes, errors and paired standard errors included."""
    walk = walk_of(risk, lanes_of(risk, None), precision=precision)
    direction = random_directions(risk, num=1, seed=0, pair=0)[0].double()
    state = {"alpha": 0.0}

    def run() -> np.ndarray:
        state["alpha"] += 1e-3
        point = (risk.theta.double() + state["alpha"] * direction).to(risk.dtype)
        return walk.at(point)["loss"].cpu().numpy()

    return run


def bare_loop(risk: ModelRisk, precision: str) -> Run:
    """Return the forward passes of our own network over our own chunks, and nothing else."""
    evaluator = PointEvaluator(risk, precision=precision)
    evaluator(risk.theta)

    def run() -> None:
        with torch.no_grad(), precise_arithmetic():
            for inputs in evaluator._inputs or ():
                call_with(evaluator._folded, inputs)
        if risk.device.type == "cuda":
            torch.cuda.synchronize()

    return run


def measure_engine(risk: ModelRisk, images: int, rounds: int) -> list[dict]:
    runs = {
        "bare": bare_loop(risk, "exact"),
        "ours": our_point(risk, "exact"),
        "bare preview": bare_loop(risk, "preview"),
        "preview": our_point(risk, "preview"),
        "plain": plain_point(risk),
    }
    ours, plain = our_point(risk, "exact")(), plain_point(risk)()
    assert np.abs(ours[:10] - plain).max() < 1e-4 * plain.max()
    times = timed(runs, rounds, risk.device)
    pairs = {("ours", "plain"): 0, ("preview", "plain"): 0, ("bare", "ours"): 0, ("bare preview", "preview"): 0}
    notes = {("bare", "ours"): "overhead over the bare forward loop: ratio - 1"}
    num = f"{len(risk.labels)} images"
    return rows_of("engine", images, num, times, pairs, notes)


def require_equal_answers(risk: ModelRisk, available: list[str]) -> None:
    """Ours against every peer on a small grid, class by class; Landscaper's walk is as long as it says, not as asked."""
    axes = [tree_of(risk, d) for d in random_directions(risk, num=2, seed=0, pair=0)]
    coordinates = np.linspace(-0.2, 0.2, 3)
    ours = measure_surface(risk, "classes", kind="plane", directions=_flat(risk, axes), x=coordinates, y=coordinates)
    for c in (0, 9):
        inputs, labels = images_of(risk, c)
        for name in available:
            if name.startswith("Landscaper"):
                continue  # it normalises, rescales, and adds noise to its largest value: nothing equal can be asked for
            grid = PEERS[name](plain_network(risk, MODEL), inputs, labels, axes, coordinates)
            expected = ours.loss.sel(lane=risk.class_names[c], pair=0).values
            assert np.abs(grid - expected).max() < 1e-3 * expected.max(), f"{name} differs"


def _flat(risk: ModelRisk, axes: list) -> list[torch.Tensor]:
    return [risk.layout.flatten(axis) for axis in axes]


def measure_peers(risk: ModelRisk, images: int, *, points: int, rounds: int) -> list[dict]:
    axes = [tree_of(risk, d) for d in random_directions(risk, num=2, seed=0, pair=0)]
    coordinates = np.linspace(-0.5, 0.5, points)
    batches = [images_of(risk, c) for c in range(10)]
    available = [name for name in PEERS if _is_installed(name)]
    require_equal_answers(risk, available)

    def ours(**options: Any) -> Run:
        given = {"kind": "plane", "directions": _flat(risk, axes), "x": coordinates, "y": coordinates}
        return lambda: measure_surface(risk, "classes", **given, **options)

    def peer(name: str) -> Run:
        model = plain_network(risk, MODEL)
        return lambda: [PEERS[name](model, *batch, axes, coordinates) for batch in batches]

    runs = {"ours": ours(), "preview": ours(precision="preview")}
    runs |= {name: peer(name) for name in available}
    times = timed(runs, rounds, risk.device)
    sides = [side for side in runs if side not in available]
    notes = {(side, name): "ten classes" for side in sides for name in available}
    return rows_of("peers", images, f"{points}x{points}", times, dict.fromkeys(notes), notes)


def measure_refined(risk: ModelRisk, images: int, *, points: int = 51) -> list[dict]:
    """Return rows of a whole unit plane: all cells, refined to 1 % in every class, and the peers, once each.

    The peers are timed on two classes, whose images are as many as those of any other: five times that is ten classes.
    """
    axes = [tree_of(risk, d) for d in random_directions(risk, num=2, seed=0, pair=0)]
    coordinates = np.linspace(-1, 1, points)
    grid = {"kind": "plane", "directions": _flat(risk, axes), "x": coordinates, "y": coordinates}
    times, results = {}, {}
    for side, refine in (("ours", None), ("refined to 1 %", 0.01)):
        start = time.perf_counter()
        results[side] = measure_surface(risk, "classes", refine=refine, **grid)
        times[side] = np.array([time.perf_counter() - start])
    full, refined = results["ours"].loss, results["refined to 1 %"]
    share = float((~refined.interpolated).mean())
    size = full.max(("beta", "alpha")) - full.min(("beta", "alpha"))
    worst = float((abs(refined.loss - full).max(("beta", "alpha")) / size).max())
    note = f"{share:.3f} of the cells evaluated, largest error {worst:.4f} of a class's range"
    available = [name for name in PEERS if _is_installed(name)]
    for name in available:
        start = time.perf_counter()
        for c in (0, 9):
            PEERS[name](plain_network(risk, MODEL), *images_of(risk, c), axes, coordinates)
        times[name] = np.array([5 * (time.perf_counter() - start)])
    pairs = {(side, name): "" for side in ("ours", "refined to 1 %") for name in available}
    pairs[("refined to 1 %", "ours")] = ""
    notes = {pair: note if pair[0] != "ours" else "two of ten classes, times five" for pair in pairs}
    return rows_of("whole plane", images, f"{points}x{points}", times, pairs, notes)


def _is_installed(name: str) -> bool:
    try:
        if name.startswith("Landscaper"):
            import landscaper  # noqa: F401
        elif name.startswith("loss-landscapes"):
            import loss_landscapes  # noqa: F401
    except ImportError:
        print(f"  {name} is not installed: left out")
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--points", type=int, default=21)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peer-rounds", type=int, default=2)
    parser.add_argument("--questions", nargs="+", default=["engine", "peers"])
    given = parser.parse_args()
    rows = []
    for images in given.images:
        risk = load_risk(
            given.checkpoint,
            model=MODEL,
            dataset="cifar10-lt",
            data_dir=given.data_dir,
            imbalance_ratio=100,
            max_per_class=images,
        )
        print(f"{images} images per class, {risk.device}", flush=True)
        if "engine" in given.questions:
            rows += measure_engine(risk, images, given.rounds)
        if "refined" in given.questions:
            rows += measure_refined(risk, images)
        if "peers" in given.questions:
            rows += measure_peers(risk, images, points=given.points, rounds=given.peer_rounds)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads"
    where = {"device": device, "torch": torch.__version__, "machine": platform.machine()}
    where["date"] = datetime.now(UTC).strftime("%Y-%m-%d")
    with open(given.out, "w", newline="") as file:
        writer = csv.DictWriter(file, [*COLUMNS, *where])
        writer.writeheader()
        writer.writerows({**row, **where} for row in rows)


if __name__ == "__main__":
    main()
