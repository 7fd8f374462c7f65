"""The one training loop. A method differs by the loss and the optimizer it is given, never by the loop."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from landscape.checkpoint import write_checkpoint
from landscape.data import Batches, Dataset
from landscape.errors import LandscapeError
from landscape.losses import Reweighting, build_loss
from landscape.models import build_model
from landscape.optimizers import NeighbourhoodOptimizer, build_optimizer
from landscape.randomness import stream
from landscape.results import versions
from landscape.threads import suitable_threads
from landscape.training import folder as files
from landscape.training.evaluation import Evaluation, evaluate
from landscape.training.schedules import learning_rate
from landscape.training.spec import BASES, TrainSpec

logger = logging.getLogger(__name__)


class Progress(Protocol):
    """Called after each epoch with the epochs done, their total and one line of text."""

    def __call__(self, done: int, total: int, text: str) -> None:
        """Show it; what it raises ends the run, which can be resumed."""


class Objective(nn.Module):
    r"""The per-example losses that training averages: the loss, re-weighted as the epoch demands.

    Parameters
    ----------
    loss
        Per-example loss, (B, C) logits and (B,) labels to (B,).
    reweighting
        Class weights by epoch; the mean of the result is the published :math:`\sum w_y \ell / \sum w_y` of the batch.

    Attributes
    ----------
    epoch : int
        The epoch in force, counted from 0; the training loop sets it.
    """

    def __init__(self, loss: nn.Module, reweighting: Reweighting) -> None:
        super().__init__()
        self.loss = loss
        self.reweighting = reweighting
        self.epoch = 0

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the losses, (B,)."""
        losses: Tensor = self.reweighting(self.loss(logits, labels), labels, self.epoch)
        return losses


@dataclass
class Run:
    """What an epoch needs."""

    spec: TrainSpec
    dataset: Dataset
    device: torch.device
    model: nn.Module
    objective: Objective
    optimizer: NeighbourhoodOptimizer
    batches: Batches
    history: list[dict[str, Any]]

    @property
    def num_inputs(self) -> int:
        """Numbers in a batch of inputs."""
        return self.spec.batch_size * self.dataset.train.images[0].numel()


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device to compute on; ``auto`` is the GPU if there is one; LandscapeError if it is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise LandscapeError(f"cannot compute on device '{device}' ({reason}): choose auto, cpu or cuda") from None
    return resolved


def train(
    spec: TrainSpec,
    out: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    resume: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Train one network and write its checkpoint.

    Every random stream is found by the seed, its name and the epoch, and the state is written after every epoch, so on
    a CPU a run that was killed and resumed ends with the bits of one that was not (with the same number of threads: the
    order of a sum depends on it; small images use one). The global generators are not used.

    Parameters
    ----------
    spec
        What to train.
    out
        Folder for ``checkpoint.safetensors`` (the last epoch's weights), ``history.csv`` (per epoch: learning rate,
        training loss as the optimizer saw it, seconds, and on the test images the unweighted training loss and the
        accuracy of ``all``, ``head``, ``medium``, ``tail`` and each class), ``run.json`` (spec, versions, environment,
        timings), with ``snapshot_every`` also ``epoch-0010.safetensors`` and so on; while it runs, ``state.pt``.
    device
        ``cpu``, ``cuda``, ``auto`` or a torch device.
    resume
        Go on from ``out`` if a run with the same spec was interrupted there. A finished run is left as it is.
    progress
        Called after each epoch: ``progress(done, total, text)``.

    Returns
    -------
    Path
        The checkpoint file.

    Raises
    ------
    LandscapeError
        If ``out`` cannot be written or holds another run, the device is not there, or the training diverges.
    """
    chosen = resolve_device(device)
    out = files.prepare_folder(out)
    state = files.find_state(out, spec, resume=resume)
    if state is not None and state["finished"]:
        text = f"{out} holds this run already finished: nothing to do"
        logger.info(text)
        if progress is not None:
            progress(spec.epochs, spec.epochs, text)
        return out / files.CHECKPOINT
    run = build_run(spec, chosen)
    if state is not None:
        _restore(run, state)
        logger.info("resuming %s after epoch %d of %d", out, len(run.history), spec.epochs)
    with suitable_threads(run.num_inputs):
        for epoch in range(len(run.history), spec.epochs):
            _run_epoch(run, epoch)
            _write_epoch(run, out)
            if progress is not None:
                progress(epoch + 1, spec.epochs, _describe(run.history[-1]))
        return _finish(run, out)


def build_run(spec: TrainSpec, device: torch.device) -> Run:
    """Build everything that a run needs from its specification, at epoch 0."""
    dataset = spec.load_data()
    model = build_model(
        spec.model,
        num_classes=dataset.num_classes,
        in_channels=dataset.train.images.shape[1],
        image_size=dataset.image_size,
        head=spec.resolved_head,
        seed=spec.seed,
    ).to(device)
    loss = build_loss(spec.loss, dataset.train_counts, **spec.loss_options)
    reweighting = Reweighting(spec.reweight, dataset.train_counts, start_epoch=spec.drw_epoch)
    objective = Objective(loss, reweighting).to(device)
    optimizer = build_optimizer(
        spec.optimizer,
        model.parameters(),
        base=BASES[spec.base],
        base_options=spec.base_options,
        model=model,
        criterion=objective,
        class_counts=dataset.train_counts,
        tail_classes=None if "eta" in spec.optimizer_options else dataset.groups.members["tail"] or None,
        bn_statistics=spec.bn_statistics,
        **spec.optimizer_options,
    )
    return Run(
        spec=spec,
        dataset=dataset,
        device=device,
        model=model,
        objective=objective,
        optimizer=optimizer,
        batches=Batches(dataset, batch_size=spec.batch_size, device=device, augment=spec.augment),
        history=[],
    )


def _restore(run: Run, state: dict[str, Any]) -> None:
    run.model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.history.extend(state["history"])


def begin_epoch(run: Run, epoch: int) -> float:
    """Set learning rate, noise streams and modes for an epoch; return the learning rate."""
    spec = run.spec
    lr = learning_rate(spec.schedule, epoch, num_epochs=spec.epochs, lr=spec.lr)
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    streams = f"training/epoch={epoch}"
    run.optimizer.start_epoch(epoch, spec.epochs, stream(spec.seed, f"{streams}/optimizer", device=run.device))
    run.objective.epoch = epoch
    if hasattr(run.objective.loss, "generator"):  # a loss that draws noise
        noise = stream(spec.seed, f"{streams}/loss", device=run.device)
        setattr(run.objective.loss, "generator", noise)  # noqa: B010  (not every loss declares it)
    run.model.train()
    run.objective.train()
    return lr


def batches_of(run: Run, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Return the batches of an epoch: the same whenever it is asked for."""
    return run.batches.epoch(stream(run.spec.seed, f"training/epoch={epoch}/batches"))


def take_step(run: Run, images: Tensor, labels: Tensor) -> Tensor:
    """Take one optimizer step on a batch; return the mean loss where the optimizer first evaluated it."""
    return run.optimizer.step(lambda: run.objective(run.model(images), labels), labels)


def _run_epoch(run: Run, epoch: int) -> None:
    """Train one epoch, evaluate if it is due, append the epoch's row to the history."""
    spec, started = run.spec, time.perf_counter()
    lr = begin_epoch(run, epoch)
    # Summed on the device: reading a value back in every step would make the host wait for the device.
    total = torch.zeros((), dtype=torch.float64, device=run.device)
    num_images = 0
    for images, labels in batches_of(run, epoch):
        total += take_step(run, images, labels).double() * len(labels)
        num_images += len(labels)
    train_loss = total.item() / num_images
    _require_finite(run, epoch, lr, train_loss)
    seconds = time.perf_counter() - started

    row: dict[str, Any] = {"epoch": epoch + 1, "lr": lr, "train_loss": train_loss, "seconds": seconds}
    if (epoch + 1) % spec.evaluate_every == 0 or epoch + 1 == spec.epochs:
        evaluation = evaluate(run.model, run.dataset.test, run.dataset, criterion=run.objective.loss)
        row |= _test_columns(evaluation, run.dataset)
    run.history.append(row)


def _require_finite(run: Run, epoch: int, lr: float, train_loss: float) -> None:
    weights = torch.stack([parameter.detach().sum() for parameter in run.model.parameters()])
    if torch.isfinite(weights).all() and math.isfinite(train_loss):
        return
    raise LandscapeError(
        f"training diverged in epoch {epoch + 1} of {run.spec.epochs}: the loss is {train_loss} "
        f"(optimizer {run.spec.optimizer}, learning rate {lr:g}); lower the learning rate or the perturbation radius"
    )


def _test_columns(evaluation: Evaluation, dataset: Dataset) -> dict[str, float]:
    """Return ``test_loss/<lane>`` and ``test_accuracy/<lane>`` for all, the groups and the classes."""
    lanes = {"all": tuple(range(dataset.num_classes)), **dataset.groups.members}
    lanes |= {name: (index,) for index, name in enumerate(dataset.class_names)}
    pooled = {lane: evaluation.pooled(classes) for lane, classes in lanes.items()}
    columns = {f"test_loss/{lane}": loss for lane, (loss, _) in pooled.items()}
    return columns | {f"test_accuracy/{lane}": accuracy for lane, (_, accuracy) in pooled.items()}


def _describe(row: dict[str, Any]) -> str:
    text = f"train loss {row['train_loss']:.4f}"
    if "test_accuracy/all" in row:
        lanes = [lane for lane in ("all", "head", "medium", "tail") if f"test_accuracy/{lane}" in row]
        text += ", test accuracy " + ", ".join(f"{lane} {row[f'test_accuracy/{lane}']:.3f}" for lane in lanes)
    return text


def _write_epoch(run: Run, out: Path) -> None:
    epoch = len(run.history)
    # Before the state, so that a run killed in between writes it again.
    if run.spec.is_snapshot(epoch):
        write_checkpoint(out / files.snapshot_name(epoch), run.model.state_dict(), checkpoint_spec(run))
    state = {
        "spec": json.dumps(run.spec.to_dict()),
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "history": run.history,
    }
    files.write_state(out / files.STATE, state)
    files.write_history(out / files.HISTORY, run.history)
    files.write_record(out / files.RECORD, _record(run, is_finished=False))


def _finish(run: Run, out: Path) -> Path:
    path = write_checkpoint(out / files.CHECKPOINT, run.model.state_dict(), checkpoint_spec(run))
    files.write_history(out / files.HISTORY, run.history)
    files.write_record(out / files.RECORD, _record(run, is_finished=True))
    (out / files.STATE).unlink(missing_ok=True)  # last: whatever failed before can be resumed
    return path


def _accuracy(run: Run) -> dict[str, float]:
    """Return the test accuracy per lane after the last epoch; empty if it was not evaluated."""
    if not run.history:
        return {}
    columns = {name.partition("/"): value for name, value in run.history[-1].items()}
    lanes = {lane: value for (kind, _, lane), value in columns.items() if kind == "test_accuracy"}
    return {lane: value for lane, value in lanes.items() if not math.isnan(value)}  # an empty group; JSON has no NaN


def checkpoint_spec(run: Run) -> dict[str, Any]:
    """Return what the checkpoint says about itself; nothing in it depends on when or how fast the run was."""
    spec, dataset = run.spec, run.dataset
    _, in_channels, height, _ = dataset.train.images.shape
    return {
        "model": spec.model,
        "head": spec.resolved_head,
        "num_classes": dataset.num_classes,
        "class_names": list(dataset.class_names),
        "in_channels": in_channels,
        "image_size": height,
        "loss": spec.loss,
        "loss_options": spec.loss_options,
        "class_counts": list(dataset.train_counts),
        "reweight": spec.reweight,
        "drw_epoch": spec.drw_epoch,
        "data": dataset.recipe,
        "groups": {"rule": dataset.groups.rule, "members": {k: list(v) for k, v in dataset.groups.members.items()}},
        "normalization": {"mean": list(dataset.mean), "std": list(dataset.std)},
        "optimizer": spec.optimizer,
        "optimizer_options": dataclasses.asdict(run.optimizer.rule),  # type: ignore[call-overload]  # with its defaults
        "base": spec.base,
        "base_options": spec.base_options,
        "schedule": spec.schedule,
        "batch_size": spec.batch_size,
        "bn_statistics": spec.bn_statistics,
        "epochs": spec.epochs,
        "epoch": len(run.history),
        "seed": spec.seed,
        "versions": versions(),
        "accuracy": _accuracy(run),
    }


def _record(run: Run, *, is_finished: bool) -> dict[str, Any]:
    seconds = [row["seconds"] for row in run.history]
    num_images = len(run.dataset.train) * len(seconds)
    return {
        "finished": is_finished,
        "spec": run.spec.to_dict(),
        "checkpoint": checkpoint_spec(run),
        "environment": files.describe_environment(run.device),
        "timings": {
            "num_epochs": len(seconds),
            "seconds": sum(seconds),
            "seconds_per_epoch": sum(seconds) / len(seconds),
            "images_per_second": num_images / sum(seconds),
            "num_forwards": run.optimizer.num_forwards,
            "num_backwards": run.optimizer.num_backwards,
        },
    }
