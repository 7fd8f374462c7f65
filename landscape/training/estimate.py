"""What a training run will cost, measured from a few of its own steps."""

from __future__ import annotations

import math
import time
from pathlib import Path

import torch
from torch import Tensor

from landscape.checkpoint import write_checkpoint
from landscape.threads import suitable_threads
from landscape.training.evaluation import evaluate
from landscape.training.loop import batches_of, begin_epoch, take_step
from landscape.training.record import checkpoint_spec
from landscape.training.setup import Run, build_run, resolve_device
from landscape.training.spec import TrainSpec

NUM_TIMED_STEPS = 3


def estimate_training(spec: TrainSpec, *, device: str | torch.device = "cpu") -> tuple[float, int]:
    """Return the expected (seconds, bytes) of a training run; nothing is written.

    A warm-up step and a few timed ones are taken on a throw-away network, and one evaluation; bytes are the saved
    activations of a batch, weights, gradients, momentum and the images on the device.
    """
    run = build_run(spec, resolve_device(device))
    begin_epoch(run, 0)
    with suitable_threads(run.num_inputs):
        batches = batches_of(run, 0)
        images, labels = next(batches)
        activations = _saved_bytes(run, images, labels)
        take_step(run, images, labels)
        _wait(run)
        start = time.perf_counter()
        for _ in range(NUM_TIMED_STEPS):
            take_step(run, images, labels)
        _wait(run)
        step = (time.perf_counter() - start) / NUM_TIMED_STEPS
        start = time.perf_counter()
        evaluate(run.model, run.dataset.test, run.dataset, criterion=run.objective.loss)
        evaluation = time.perf_counter() - start
    num_evaluations = math.ceil(spec.epochs / spec.evaluate_every)
    seconds = step * run.batches.num_batches * spec.epochs + evaluation * num_evaluations
    weights = sum(parameter.numel() * parameter.element_size() for parameter in run.model.parameters())
    stored = sum(split.images.numel() for split in (run.dataset.train, run.dataset.test) if split.is_resident)
    return seconds, activations + 5 * weights + stored


def untrained_checkpoint(spec: TrainSpec, folder: str | Path) -> Path:
    """Write the checkpoint of a network as initialised: the stand-in by which an analysis is estimated."""
    run = build_run(spec, torch.device("cpu"))
    return write_checkpoint(Path(folder) / "untrained.safetensors", run.model.state_dict(), checkpoint_spec(run))


def _saved_bytes(run: Run, images: Tensor, labels: Tensor) -> int:
    total = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        run.objective(run.model(images), labels)
    return total


def _wait(run: Run) -> None:
    if run.device.type == "cuda":
        torch.cuda.synchronize(run.device)
