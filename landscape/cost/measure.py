"""Every optimizer's step on the same network and the same batch, timed in turn."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binom
from torch import Tensor

from landscape.cost.memory import peak_bytes
from landscape.data import Dataset
from landscape.errors import require_whole
from landscape.optimizers import OPTIMIZERS
from landscape.randomness import numpy_stream
from landscape.threads import suitable_threads
from landscape.training import TrainSpec
from landscape.training.feeding import batches_of
from landscape.training.loop import begin_epoch, take_step
from landscape.training.methods import MiniBatch
from landscape.training.setup import Run, build_run, resolve_device

logger = logging.getLogger(__name__)

PLAIN = "sgd"
COVERAGE = 0.95


@dataclass(frozen=True)
class CostOptions:
    """How much is timed.

    Attributes
    ----------
    num_rounds
        Rounds; in each every method is timed once, in an order of its own.
    num_steps
        Steps per round and method.
    """

    num_rounds: int = 15
    num_steps: int = 1

    def __post_init__(self) -> None:
        for name, least in (("num_rounds", 6), ("num_steps", 1)):
            require_whole(f"--{name.removeprefix('num_')}", getattr(self, name), least)


@dataclass(frozen=True)
class Cost:
    """What one method costs, per step.

    Attributes
    ----------
    optimizer
        Its name.
    num_forwards, num_backwards
        Passes per step, counted.
    seconds
        Median over the rounds.
    ratio, ratio_low, ratio_high
        Time relative to the plain optimizer: the median of the rounds' ratios and its 95 % interval (order statistics).
    implied
        The ratio that the passes alone imply, from a forward and a backward pass timed in the same rounds.
    images_per_second
        Batch size over ``seconds``.
    peak_bytes
        Peak memory of a step with weights, optimizer states and the batch, see :func:`landscape.cost.memory.peak_bytes`.
    """

    optimizer: str
    num_forwards: int
    num_backwards: int
    seconds: float
    ratio: float
    ratio_low: float
    ratio_high: float
    implied: float
    images_per_second: float
    peak_bytes: int


def measure_costs(
    spec: TrainSpec,
    optimizers: Sequence[str] = tuple(OPTIMIZERS),
    *,
    options: CostOptions | None = None,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int, str], None] | None = None,
) -> list[Cost]:
    """Time a training step of several optimizers on one network, loss and batch, side by side.

    Parameters
    ----------
    spec
        The training; its optimizer options hold for its own optimizer, the others have their defaults.
    optimizers
        Names in ``OPTIMIZERS``; the plain one is timed in any case.
    options
        Rounds and steps.
    device
        ``cpu``, ``cuda``, ``auto`` or a torch device.
    progress
        Called after each round.

    Returns
    -------
    list of Cost
        The plain optimizer first, then in the order given.

    Raises
    ------
    LandscapeError
        For an unknown optimizer, or what :class:`TrainSpec` raises.
    """
    options = options or CostOptions()
    names = [PLAIN, *(name for name in dict.fromkeys(optimizers) if name != PLAIN)]
    chosen = resolve_device(device)
    dataset = spec.load_data()
    runs = {name: _run_of(spec, name, chosen, dataset) for name in names}
    batch = next(batches_of(runs[PLAIN], 0))
    works = {name: _stepper(run, batch) for name, run in runs.items()}
    with suitable_threads(runs[PLAIN].num_inputs):
        counts, peaks = {}, {}
        for name, run in runs.items():
            works[name]()  # warm: kernels chosen, states allocated
            peaks[name] = peak_bytes(works[name], _held(run, batch), chosen)
            before = run.optimizer.num_forwards, run.optimizer.num_backwards
            works[name]()
            counts[name] = run.optimizer.num_forwards - before[0], run.optimizer.num_backwards - before[1]
        times, passes = _rounds(works, runs[PLAIN], batch, options, progress)
    forward, backward = passes[:, 0], passes[:, 1]
    result = []
    for name in names:
        num_forwards, num_backwards = counts[name]
        ratio, low, high = median_interval(times[name] / times[PLAIN])
        implied = (num_forwards * forward + num_backwards * backward) / (forward + backward)
        seconds = float(np.median(times[name]))
        result.append(
            Cost(
                optimizer=name,
                num_forwards=num_forwards,
                num_backwards=num_backwards,
                seconds=seconds,
                ratio=ratio,
                ratio_low=low,
                ratio_high=high,
                implied=float(np.median(implied)),
                images_per_second=len(batch.labels) / seconds,
                peak_bytes=peaks[name],
            )
        )
    return result


def median_interval(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the median and its distribution-free interval of at least 95 %: two order statistics.

    Examples
    --------
    >>> median_interval(np.arange(9.0))
    (4.0, 1.0, 7.0)
    """
    ordered = np.sort(values)
    num = len(ordered)
    k = int(binom.ppf((1 - COVERAGE) / 2, num, 0.5))  # P(Binomial(num, 1/2) < k) <= 2.5 %
    k = max(k, 1)
    return float(np.median(ordered)), float(ordered[k - 1]), float(ordered[num - k])


def _run_of(spec: TrainSpec, name: str, device: torch.device, dataset: Dataset) -> Run:
    run = build_run(spec.with_optimizer(name), device, dataset=dataset)
    begin_epoch(run, 0)
    return run


def _stepper(run: Run, batch: MiniBatch) -> Callable[[], None]:
    def step() -> None:
        take_step(run, batch)
        _wait(run.device)

    return step


def _held(run: Run, batch: MiniBatch) -> list[Tensor]:
    states = [value for state in run.optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return [
        *batch.views,
        batch.labels,
        *run.model.parameters(),
        *run.model.buffers(),
        *run.method.parameters(),
        *states,
    ]


def _rounds(
    works: dict[str, Callable[[], None]],
    plain: Run,
    batch: MiniBatch,
    options: CostOptions,
    progress: Callable[[int, int, str], None] | None,
) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.float64]]:
    """Return seconds per step of each method (rounds,), and of a forward and a backward pass (rounds, 2)."""
    times = {name: np.empty(options.num_rounds) for name in works}
    passes = np.empty((options.num_rounds, 2))
    order = numpy_stream(plain.spec.seed, "cost/order")
    for r in range(options.num_rounds):
        for name in order.permutation([*works, "passes"]):
            if name == "passes":
                passes[r] = _timed_passes(plain, batch, options.num_steps)
                continue
            start = time.perf_counter()
            for _ in range(options.num_steps):
                works[name]()
            times[name][r] = (time.perf_counter() - start) / options.num_steps
        if progress is not None:
            progress(r + 1, options.num_rounds, f"round {r + 1}, plain step {1e3 * times[PLAIN][r]:.3g} ms")
    return times, passes


def _timed_passes(run: Run, batch: MiniBatch, num: int) -> tuple[float, float]:
    """Return the seconds of a forward pass with its graph, and of the backward pass through it."""
    params: list[Any] = [p for group in run.optimizer.param_groups for p in group["params"]]
    forward = backward = 0.0
    for _ in range(num):
        start = time.perf_counter()
        loss = run.method.closures(batch).descent().mean()
        _wait(run.device)
        middle = time.perf_counter()
        torch.autograd.grad(loss, params, allow_unused=True)
        _wait(run.device)
        forward, backward = forward + middle - start, backward + time.perf_counter() - middle
    return forward / num, backward / num


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
