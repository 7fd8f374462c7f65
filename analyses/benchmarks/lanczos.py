"""What Lanczos must hold by count: operations, host synchronisations, atoms, certified digits, class sums, coverage.

    python -m analyses.benchmarks.lanczos --out CSV [--checkpoint FILE --data-dir DIR] [--device cuda]

Every row has a target, what was measured, whether it was met, and how it was counted; nothing here is timed. Without a
checkpoint the networks are trained on digits within seconds; the checkpoint is a ResNet-20 for CIFAR-10 that somebody
else trained, studied on test images. The rows on operators (sums, refusals, coverage) are in ``operators.py``.
"""

from __future__ import annotations

import argparse
import csv
import platform
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from analyses.benchmarks.estimates import CLASSES, class_spectrum, trained_network
from analyses.redrawn_augmentation.study import released
from landscape.data import load_dataset
from landscape.loading import load_risk
from landscape.randomness import stream
from landscape.risk import ModelRisk
from landscape.spectrum import Lanczos, SpectrumOptions
from landscape.spectrum.lanczos import sphere
from landscape.spectrum.lane import find_extremes

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NUM_STEPS = 100
MOST_OPERATIONS = 1200
LOWEST_RITZ = -1e-5  # of lambda_max
MOST_RANK = 25
# A Ritz value above this share of lambda_max is an atom; rounding of a float32 product is 1e-7 of it.
ATOM = 1e-5
CERTIFIED = 1e-10
CERTIFIED_STEPS = 40
# Calls that wait for the device, or move numbers to the host.
HOST_OPERATIONS = ("_local_scalar_dense", "_to_copy", "nonzero", "is_nonzero", "equal.default", "item")
HOST_METHODS = (
    "item",
    "tolist",
    "cpu",
    "numpy",
    "cuda",
    "to",
    "nonzero",
    "__bool__",
    "__float__",
    "__int__",
    "__array__",
)

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Row:
    """One line of the table; ``met`` is empty where nothing was demanded."""

    quantity: str
    case: str
    target: str
    measured: str
    met: str
    how: str

    @classmethod
    def at_most(cls, quantity: str, case: str, *, target: float, measured: float, how: str) -> Row:
        """Return the row of a number that may not exceed its target."""
        return cls(quantity, case, f"<= {target:g}", f"{measured:.4g}", _yes(measured <= target), how)

    @classmethod
    def at_least(cls, quantity: str, case: str, *, target: float, measured: float, how: str) -> Row:
        """Return the row of a number that may not fall below its target."""
        return cls(quantity, case, f">= {target:g}", f"{measured:.4g}", _yes(measured >= target), how)

    @classmethod
    def all_of(cls, quantity: str, case: str, *, measured: int, total: int, how: str) -> Row:
        """Return the row of a property that every problem must have."""
        return cls(quantity, case, f"{total} of {total}", f"{measured} of {total}", _yes(measured == total), how)

    @classmethod
    def record(cls, quantity: str, case: str, *, measured: str, how: str) -> Row:
        """Return a row that is for the record only."""
        return cls(quantity, case, "", measured, "", how)


def _yes(is_met: bool) -> str:
    return "yes" if is_met else "NO"


# ---- operations and synchronisations ----------------------------------------------------------------------------------


class Operations(TorchDispatchMode):
    """Counts what reaches the dispatcher; products are formed without it."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.num_host = 0
        self.num_views = 0
        self.is_paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).removeprefix("aten.")
        self.counts[name] += 1
        self.num_views += bool(func.is_view)
        self.num_host += name.startswith(HOST_OPERATIONS) or _crosses(name, args)
        return func(*args, **(kwargs or {}))


def _crosses(name: str, args: Any) -> bool:
    devices = {a.device for a in args if isinstance(a, Tensor)}
    return name.startswith("copy_") and len(devices) > 1


class HostCalls(TorchFunctionMode):
    """Counts methods that hand numbers to the host; on a CPU some of them never reach the dispatcher."""

    def __init__(self, operations: Operations) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._operations = operations

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self._operations.is_paused and getattr(func, "__name__", "") in HOST_METHODS:
            self.counts[func.__name__] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def no_synchronisation(device: torch.device, allowed: bool = False) -> Iterator[None]:
    """Let CUDA itself refuse to wait for the device; allow it again within."""
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("default" if allowed else "error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def count_operations(product: Product, starts: Tensor, num_steps: int = NUM_STEPS) -> tuple[int, int, int]:
    """Return the operations of one sweep outside its products, how many are views, and the host synchronisations."""
    seen = Operations()

    def matvec(vectors: Tensor) -> Tensor:
        seen.is_paused = True
        try:
            with no_synchronisation(starts.device, allowed=True), _disable_current_modes():
                return product(vectors)
        finally:
            seen.is_paused = False

    run = Lanczos(matvec, starts)
    with HostCalls(seen) as calls, seen, no_synchronisation(starts.device):
        run.extend(num_steps)
    return sum(seen.counts.values()), seen.num_views, seen.num_host + sum(calls.counts.values())


def operation_rows(name: str, risk: ModelRisk) -> Iterator[Row]:
    """Count one lane, and all classes in lock-step."""
    num_classes = len(risk.class_names)
    for rows in (1, num_classes):
        starts = sphere(rows, len(risk.theta), stream(0, "lanczos/operations")).to(risk.theta)
        lanes = torch.eye(num_classes, dtype=torch.float64)[:rows]
        with risk.hessian(risk.theta, lanes) as product:
            operations, views, host = count_operations(lambda v: product(v[:, None])[:, 0], starts)
        case = f"{name}, m = {NUM_STEPS}, {rows} lane{'s in lock-step' if rows > 1 else ''}"
        how = f"TorchDispatchMode around extend, products excluded; {views} of them are views"
        yield Row.at_most("tensor operations", case, target=MOST_OPERATIONS, measured=operations, how=how)
        how = "dispatched scalar reads, copies, nonzero, and calls of item, cpu, numpy, tolist, to, bool while extend runs"
        if risk.theta.is_cuda:
            how += "; CUDA's own check (set_sync_debug_mode) raises at any other"
        yield Row.at_most("host synchronisations", case, target=0, measured=host, how=how)


# ---- low rank ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LowRank:
    """Softmax regression whose class Hessians have rank images * (classes - 1)."""

    risk: ModelRisk
    lane: Tensor  # (C,)
    eigenvalues: np.ndarray  # the nonzero ones, ascending
    rank: int


def low_rank_problems(draws: int) -> Iterator[LowRank]:
    """Yield every number of classes and images per class of rank at most 25: digits, or normal features beyond ten classes.

    Weights are drawn, so that no two eigenvalues coincide: an atom is a distinct eigenvalue.
    """
    data = load_dataset("digits-lt", imbalance_ratio=1.0)
    pixels = data.normalise(data.train.images, torch.float64).flatten(1)
    for num_classes in (2, 3, 4, 5, 6, 8, 10, 14, 26):
        for images in range(1, MOST_RANK // (num_classes - 1) + 1):
            for draw in range(draws):
                generator = stream(draw, f"lanczos/rank/{num_classes}/{images}")
                rows = []
                for c in range(num_classes):
                    if num_classes <= 10:
                        members = torch.nonzero(data.train.labels == c)[:, 0]
                        rows.append(pixels[members[torch.randperm(len(members), generator=generator)[:images]]])
                    else:
                        rows.append(torch.randn(images, 64, generator=generator, dtype=torch.float64))
                yield _low_rank(torch.cat(rows), images, num_classes, draw % num_classes, generator)


def _low_rank(inputs: Tensor, images: int, num_classes: int, c: int, generator: torch.Generator) -> LowRank:
    model = nn.Linear(inputs.shape[1], num_classes)
    with torch.no_grad():
        model.weight.copy_(torch.randn(model.weight.shape, generator=generator) / 16)
        model.bias.copy_(torch.randn(num_classes, generator=generator) / 4)
    labels = torch.arange(num_classes).repeat_interleave(images)
    risk = ModelRisk(model, (inputs.float(), labels))
    lane = torch.eye(num_classes, dtype=torch.float64)[c]
    x = inputs.float().double()[labels == c]
    logits = x @ model.weight.detach().double().T + model.bias.detach().double()
    p = logits.softmax(1)
    factors = torch.diag_embed(p.sqrt()) - p[:, :, None] * p.sqrt()[:, None, :]  # factor factor' = diag(p) - p p'
    overlaps = x @ x.T + 1  # the bias is a feature that is one
    gram = torch.einsum("ij,ica,jcb->iajb", overlaps, factors, factors).reshape(images * num_classes, -1) / images
    values = np.linalg.eigvalsh(gram.numpy())
    rank = images * (num_classes - 1)
    return LowRank(risk, lane, values[-rank:], rank)


def low_rank_rows(draws: int) -> Iterator[Row]:
    """Count atoms and look for negative ones; the released recurrence on the same operators shows what goes wrong."""
    lowest, num_right, num_problems, largest_error = [], 0, 0, 0.0
    theirs = []
    for problem in low_rank_problems(draws):
        top = problem.eigenvalues[-1]
        assert problem.eigenvalues[0] > 2 * ATOM * top, "an eigenvalue below what counts as an atom"
        theta = problem.risk.theta
        start = sphere(1, len(theta), stream(num_problems, "lanczos/rank/start")).to(theta)
        num_steps = min(2 * MOST_RANK, len(theta))
        with problem.risk.hessian(theta, problem.lane[None]) as product:
            run = Lanczos(lambda v: product(v[:, None])[:, 0], start)
            run.extend(num_steps)
            alphas, betas = released(lambda v: product(v[:, None])[:, 0], start, num_steps)
        values = run.ritz(0).values
        atoms = values[values > ATOM * top]
        num_problems += 1
        lowest.append(values[0] / top)
        num_right += len(atoms) == problem.rank
        if len(atoms) == problem.rank:
            largest_error = max(largest_error, float(np.abs(atoms - problem.eigenvalues).max() / top))
        theirs.append(np.linalg.eigvalsh(np.diag(alphas) + np.diag(betas, 1) + np.diag(betas, -1))[0] / top)
    case = f"{num_problems} class Hessians of softmax regressions, rank 1 to {MOST_RANK}, float32"
    how = f"{2 * MOST_RANK} steps, beyond breakdown; in units of the exact lambda_max, smallest over the problems"
    yield Row.at_least("smallest Ritz value", case, target=LOWEST_RITZ, measured=min(lowest), how=how)
    how = f"Ritz values above {ATOM:g} lambda_max against rank = images * (classes - 1)"
    how += f"; their largest error is {largest_error:.1e} lambda_max"
    yield Row.all_of("atoms == rank", case, measured=num_right, total=num_problems, how=how)
    how = f"the same starts, for comparison; below {LOWEST_RITZ:g} in {sum(x < LOWEST_RITZ for x in theirs)} problems"
    yield Row.record("smallest Ritz value, PyHessian's recurrence", case, measured=f"{min(theirs):.4g}", how=how)


# ---- certified digits -------------------------------------------------------------------------------------------------


def certified_rows(
    name: str, risk: ModelRisk, truths: dict[int, float], *, seeds: int, is_target: bool
) -> Iterator[Row]:
    """Say how many digits of lambda_min are certified at 40 products, in float64, worst case over classes and starts.

    ``truths`` maps a class to its exact lambda_min, or to NaN where nobody knows it.
    """
    options = SpectrumOptions(max_steps=CERTIFIED_STEPS, tolerance=1e-15, context=False)
    errors, bounds, residuals = [], [], []
    for c, truth in truths.items():
        row = torch.eye(len(risk.class_names), dtype=torch.float64)[c]
        for seed in range(seeds):
            found = find_extremes(risk, row, options, stream(seed, f"lanczos/certified/{c}"))
            assert found.num_steps <= CERTIFIED_STEPS
            size = abs(found.lambda_min)
            errors.append(abs(found.lambda_min - truth) / size)
            bounds.append(float(found.errors_low[0]) / size)
            residuals.append(found.residual_min / size)
    case = f"{name}, m = {CERTIFIED_STEPS}, float64, {len(truths)} classes, {seeds} starts"
    how = "largest min(r, r^2 / gap) + 8 eps |H|, relative to |lambda_min|; r = |Hv - lambda v|, a product of its own"
    quantity = "certified error of lambda_min"
    if is_target:
        yield Row.at_most(quantity, case, target=CERTIFIED, measured=max(bounds), how=how)
        how = "largest relative error against the dense Hessian's eigenvalue"
        yield Row.at_most("true error of lambda_min", case, target=CERTIFIED, measured=max(errors), how=how)
    else:
        within = sum(b <= CERTIFIED for b in bounds)
        how = f"median, {within} of {len(bounds)} within {CERTIFIED:g}; otherwise as above"
        yield Row.record(quantity, case, measured=f"{np.median(bounds):.2g}", how=how)
    how = f"r / |lambda_min|: median; largest {max(residuals):.1e}; no gap is taken for granted"
    yield Row.record("residual of lambda_min alone", case, measured=f"{np.median(residuals):.2g}", how=how)


# ---- the run ----------------------------------------------------------------------------------------------------------


def digits_risk(dtype: torch.dtype) -> tuple[ModelRisk, dict[int, float]]:
    """Return the 1,051-parameter network of the estimates, and the exact lambda_min of three classes."""
    model, images, labels = trained_network()
    truths = {c: float(class_spectrum(model, images[labels == c], labels[labels == c])[0]) for c in CLASSES.values()}
    return ModelRisk(model, (images, labels), dtype=dtype), truths


def foreign_risk(checkpoint: Path, data_dir: Path, *, device: str, per_class: int = 5) -> ModelRisk:
    """Return the ResNet-20 on real test images."""
    risk = load_risk(
        checkpoint, model="resnet20", dataset="cifar10", data_dir=data_dir, split="test",
        mean=MEAN, std=STD, max_per_class=per_class, device=device,
    )  # fmt: skip
    assert isinstance(risk, ModelRisk)
    return risk


def measure(checkpoint: Path | None, data_dir: Path | None, *, device: str, draws: int, seeds: int) -> Iterator[Row]:
    """Yield all rows."""
    from analyses.benchmarks.operators import operator_rows

    exact, truths = digits_risk(torch.float64)
    data = (exact._examples.inputs, exact._examples.labels)
    digits = ModelRisk(exact._model, data, dtype=torch.float32, device=device)
    foreign = foreign_risk(checkpoint, data_dir, device=device) if checkpoint and data_dir else None
    one = torch.arange(0, 50, 5)  # an image of each class: what is counted lies outside the products
    yield from operation_rows("digits network", digits)
    if foreign is not None:
        yield from operation_rows("ResNet-20", foreign.restricted(one))
    yield from low_rank_rows(draws)
    yield from certified_rows("digits network", exact, truths, seeds=seeds, is_target=True)
    if foreign is not None:
        unknown = dict.fromkeys(range(10), float("nan"))
        yield from certified_rows("ResNet-20, 5 images", foreign.in_float64(), unknown, seeds=1, is_target=False)
    yield from operator_rows("digits network", digits)
    if foreign is not None:
        yield from operator_rows("ResNet-20", foreign)


def environment(device: str) -> dict[str, object]:
    where = torch.cuda.get_device_name() if device.startswith("cuda") else "cpu"
    return {
        "device": where,
        "threads": torch.get_num_threads(),
        "torch": metadata.version("torch"),
        "numpy": metadata.version("numpy"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--draws", type=int, default=5, help="weights and images per shape of low-rank problem")
    parser.add_argument("--seeds", type=int, default=10, help="starts per certified eigenvalue")
    given = parser.parse_args()
    if (given.checkpoint is None) != (given.data_dir is None):
        parser.error("--checkpoint and --data-dir go together")
    rows = []
    for row in measure(given.checkpoint, given.data_dir, device=given.device, draws=given.draws, seeds=given.seeds):
        print(f"{row.met:3} {row.quantity}: {row.measured} ({row.target}) {row.case}", flush=True)
        rows.append({**asdict(row), **environment(given.device)})
    with given.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
