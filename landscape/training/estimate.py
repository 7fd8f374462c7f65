"""What a training run will cost, measured from a few of its own steps."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from landscape.checkpoint import write_checkpoint
from landscape.threads import suitable_threads
from landscape.training.deployment import deployed
from landscape.training.evaluation import evaluate
from landscape.training.execution import compiling, run_eagerly
from landscape.training.feeding import batches_of, inputs_of
from landscape.training.loop import begin_epoch, take_step
from landscape.training.methods import MiniBatch
from landscape.training.record import checkpoint_spec
from landscape.training.second_stages import split_stages
from landscape.training.setup import Run, build_run, resolve_device
from landscape.training.spec import TrainSpec

NUM_TIMED_STEPS = 3


def estimate_training(spec: TrainSpec, *, device: str | torch.device = "cpu") -> tuple[float, int]:
    """Return the expected (seconds, bytes) of a training run; nothing is written.

    A warm-up step and a few timed ones are taken on a throw-away network, in each phase of the method, and one
    evaluation; bytes are the saved activations of a batch, weights, gradients, momentum and the images on the device.
    Of two stages the sum of the seconds and the larger of the bytes.
    """
    if spec.second_stage is not None:
        stages = [estimate_training(stage, device=device) for stage in split_stages(spec)]
        return sum(seconds for seconds, _ in stages), max(size for _, size in stages)
    run = build_run(_unstarted(spec), resolve_device(device))
    with suitable_threads(run.num_inputs), compiling(spec.compile):
        ends = (*run.method.phases[1:], spec.epochs)
        measured = [_phase(run, first) for first in run.method.phases]
        start = time.perf_counter()
        with run_eagerly(spec.compile):
            evaluate(run.model, run.dataset.test, run.dataset, criterion=run.objective.loss)
        evaluation = time.perf_counter() - start
    training = sum(
        step * run.batches.num_batches * (end - first)
        for (step, _), first, end in zip(measured, run.method.phases, ends)
    )
    seconds = training + evaluation * max(math.ceil(spec.epochs / spec.evaluate_every), 1)
    stored = sum(split.images.numel() for split in (run.dataset.train, run.dataset.test) if split.is_resident)
    return seconds, max(activations for _, activations in measured) + _weight_bytes(run) + stored


def _phase(run: Run, epoch: int) -> tuple[float, int]:
    """Return the seconds of a step as taken from ``epoch`` on, and the bytes of its saved activations."""
    begin_epoch(run, epoch)
    batch = next(batches_of(run, epoch))
    activations = _saved_bytes(run, batch)
    take_step(run, batch)
    _wait(run)
    start = time.perf_counter()
    for _ in range(NUM_TIMED_STEPS):
        take_step(run, batch)
    _wait(run)
    return (time.perf_counter() - start) / NUM_TIMED_STEPS, activations


def _weight_bytes(run: Run) -> int:
    """Return the bytes of weights, gradients and momentum; what a method holds fixed counts once."""
    total = 0
    for parameter in run.model.parameters():
        total += 5 * parameter.numel() * parameter.element_size()
    for tensor in (*run.method.parameters(), *run.method.buffers()):
        total += (5 if tensor.requires_grad else 1) * tensor.numel() * tensor.element_size()
    return total


def untrained_checkpoint(spec: TrainSpec, folder: str | Path) -> Path:
    """Write the checkpoint of a network as initialised: the stand-in by which an analysis is estimated."""
    if spec.second_stage is not None:
        spec = split_stages(spec)[1]
    run = build_run(_unstarted(spec), torch.device("cpu"))
    return write_checkpoint(Path(folder) / "untrained.safetensors", _plain(run).state_dict(), checkpoint_spec(run))


def _plain(run: Run) -> nn.Module:
    return deployed(run, lambda: inputs_of(run, 0))


def _unstarted(spec: TrainSpec) -> TrainSpec:
    """Return the run without the weights it starts from, which a first stage has not written yet."""
    if spec.start is None:
        return spec
    return replace(spec, start=None, reinitialise_head=False, tau=None, epochs=max(spec.epochs, 1))


def _saved_bytes(run: Run, batch: MiniBatch) -> int:
    total = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        run.method.closures(batch).descent()
    return total


def _wait(run: Run) -> None:
    if run.device.type == "cuda":
        torch.cuda.synchronize(run.device)
