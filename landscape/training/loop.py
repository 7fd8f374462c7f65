"""The one training loop. A method differs by the loss and the optimizer it is given, never by the loop."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from landscape.checkpoint import write_checkpoint
from landscape.data import Dataset
from landscape.errors import LandscapeError
from landscape.files import one_line
from landscape.models import set_dropout_generator
from landscape.processes import Processes, joined_processes
from landscape.randomness import stream
from landscape.threads import suitable_threads
from landscape.training import folder as files
from landscape.training.deployment import deployed, set_training_mode
from landscape.training.evaluation import Evaluation, evaluate
from landscape.training.execution import compiling, run_eagerly
from landscape.training.feeding import batches_of, inputs_of
from landscape.training.methods import MiniBatch
from landscape.training.record import best_row, checkpoint_spec, run_record
from landscape.training.schedules import learning_rate
from landscape.training.second_stages import first_folder, split_stages
from landscape.training.setup import Run, build_run, resolve_device
from landscape.training.spec import TrainSpec
from landscape.training.stepping import num_rows, step_on

logger = logging.getLogger(__name__)


class Progress(Protocol):
    """Called after each epoch with the epochs done, their total and one line of text."""

    def __call__(self, done: int, total: int, text: str) -> None:
        """Show it; what it raises ends the run, which can be resumed."""


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

    Under ``torchrun`` several processes share every batch and average the gradients, so the steps are those of one
    process, to rounding. BatchNorm sees each process's part of a batch alone, as it sees each of ``accumulate`` pieces.

    Parameters
    ----------
    spec
        What to train.
    out
        Folder for ``checkpoint.safetensors`` (the last epoch's weights), ``history.csv`` (per epoch: learning rate,
        training loss as the optimizer saw it, seconds, and on the test images the unweighted training loss and the
        accuracy of ``all``, ``head``, ``medium``, ``tail`` and each class), ``run.json`` (spec, versions, environment,
        timings), with ``snapshot_every`` also ``epoch-0010.safetensors`` and so on, with ``keep_best`` also
        ``best.safetensors``; while it runs, ``state.pt``. The first of two stages has a folder ``stage-1`` of its own in
        it.
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
    with joined_processes(chosen) as processes:
        if spec.second_stage is None:
            return _train(spec, Path(out), chosen, resume=resume, processes=processes, progress=progress)
        return _train_both(spec, Path(out), chosen, resume=resume, processes=processes, progress=progress)


def _train(
    spec: TrainSpec,
    out: Path,
    device: torch.device,
    *,
    resume: bool,
    processes: Processes,
    progress: Progress | None,
) -> Path:
    """Train one stage; of several processes the first evaluates, writes and reports."""
    if processes.is_first:
        files.prepare_folder(out)
    processes.wait()
    state = files.find_state(out, spec, resume=resume)
    processes.wait()  # nobody writes before all have looked
    shown = progress if processes.is_first else None
    if state is not None and state["finished"]:
        text = f"{out} holds this run already finished: nothing to do"
        logger.info(text)
        if shown is not None:
            shown(spec.epochs, spec.epochs, text)
        return out / files.CHECKPOINT
    run = build_run(spec, device, folder=out)
    run.processes = run.optimizer.processes = processes
    if state is not None:
        _restore(run, state, out)
        logger.info("resuming %s after epoch %d of %d", out, run.epochs_done, spec.epochs)
    with suitable_threads(run.num_inputs), compiling(spec.compile):
        if spec.epochs == 0:
            run.history.append({"epoch": 0, "lr": 0.0, "seconds": 0.0, **_evaluated(run, 0)})
            if shown is not None:
                shown(0, 0, _describe(run.history[-1]))
        for epoch in range(run.epochs_done, spec.epochs):
            _run_epoch(run, epoch)
            if processes.is_first:
                _write_epoch(run, out)
            if shown is not None:
                shown(epoch + 1, spec.epochs, _describe(run.history[-1]))
        if processes.is_first:
            _finish(run, out)
        processes.wait()
        return out / files.CHECKPOINT


def _train_both(
    spec: TrainSpec,
    out: Path,
    device: torch.device,
    *,
    resume: bool,
    processes: Processes,
    progress: Progress | None,
) -> Path:
    """Train the two stages of a specification, one after the other."""
    first, second = split_stages(spec)
    # Another run in the way is found before the first stage trains, not after it.
    if processes.is_first:
        files.prepare_folder(out)
    processes.wait()
    files.find_state(out, second, resume=resume)
    total = first.epochs + second.epochs

    def shown(stage: str, before: int) -> Progress | None:
        if progress is None:
            return None
        return lambda done, _, text: progress(before + done, total, f"{stage}: {text}")

    later = shown(str(second.stage), first.epochs)
    _train(first, first_folder(out), device, resume=resume, processes=processes, progress=shown("stage 1", 0))
    return _train(second, out, device, resume=resume, processes=processes, progress=later)


def _restore(run: Run, state: dict[str, Any], out: Path) -> None:
    with one_line(f"{out / files.STATE} is not the state of this run, delete it to start the run anew"):
        run.model.load_state_dict(state["model"])
        run.method.load_state_dict(state["method"])
        run.optimizer.load_state_dict(state["optimizer"])
        run.resources.load_state_dict(state["resources"])
        run.companion.load_state_dict(state["companion"])
        epochs = [row["epoch"] for row in state["history"] if row["epoch"] > 0]
        if epochs != list(range(1, len(epochs) + 1)) or len(epochs) > run.spec.epochs:
            raise ValueError(f"its history has the epochs {str(epochs)[:60]}, the run {run.spec.epochs}")
        run.history.extend(state["history"])


def begin_epoch(run: Run, epoch: int) -> float:
    """Set learning rate, noise streams and modes for an epoch; return the learning rate."""
    spec = run.spec
    lr = learning_rate(spec.schedule, epoch, num_epochs=spec.epochs, lr=spec.lr, **spec.schedule_options)
    lr = run.companion.learning_rate(lr, epoch=epoch, num_epochs=spec.epochs, lr=spec.lr)
    for group in run.optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)
    streams = f"training/epoch={epoch}"
    # What is drawn for examples differs between processes, what is drawn for weights does not.
    own = streams if run.processes.is_first else f"{streams}/process={run.processes.rank}"
    run.optimizer.start_epoch(epoch, spec.epochs, stream(spec.seed, f"{streams}/optimizer", device=run.device))
    run.objective.epoch = epoch
    if hasattr(run.objective.loss, "generator"):  # a loss that draws noise
        noise = stream(spec.seed, f"{own}/loss", device=run.device)
        setattr(run.objective.loss, "generator", noise)  # noqa: B010  (not every loss declares it)
    set_dropout_generator(run.model, stream(spec.seed, f"{own}/model", device=run.device))
    run.method.start_epoch(epoch)
    run.drawing = stream(spec.seed, f"{own}/method")
    set_training_mode(run)
    return lr


def take_step(run: Run, batch: MiniBatch) -> Tensor:
    """Take one optimizer step on a batch; return the mean loss where the optimizer first evaluated it."""
    loss = step_on(run, batch)
    run.method.after_step()
    return loss


def _run_epoch(run: Run, epoch: int) -> None:
    """Train one epoch, evaluate if it is due, append the epoch's row to the history."""
    spec, started = run.spec, time.perf_counter()
    lr = begin_epoch(run, epoch)
    # Summed on the device: reading a value back in every step would make the host wait for the device.
    total = torch.zeros(2, dtype=torch.float64, device=run.device)  # losses, examples
    num_images = 0
    for batch in batches_of(run, epoch):
        num = num_rows(run, len(batch.labels))
        total[0] += take_step(run, batch).double() * num
        total[1] += num
        num_images += len(batch.labels)
    loss_sum, num_evaluated = run.processes.sum_(total).tolist()
    train_loss = loss_sum / num_evaluated
    _require_finite(run, epoch, lr, train_loss)
    # Running statistics are each process's own; those of the first are evaluated, stored and gone on with.
    run.processes.share_first_([*run.model.buffers(), *run.method.buffers()])
    run.companion.end_epoch(epoch, spec.epochs)
    seconds = time.perf_counter() - started
    run.resources.note_epoch(num_images, run.device)

    row: dict[str, Any] = {"epoch": epoch + 1, "lr": lr, "train_loss": train_loss, "seconds": seconds}
    is_due = (epoch + 1) % spec.evaluate_every == 0 or epoch + 1 == spec.epochs
    if is_due and run.processes.is_first:
        row |= _evaluated(run, epoch)
    run.history.append(row)


def _evaluated(run: Run, epoch: int) -> dict[str, float]:
    """Evaluate the network of an epoch on the test images; return the columns of the history."""
    with run_eagerly(run.spec.compile):
        network, test = _network_of(run, epoch), run.dataset.test
        columns = _test_columns(evaluate(network, test, run.dataset, criterion=run.objective.loss), run.dataset)
        if not run.spec.test_time_flip:
            return columns
        flipped = _test_columns(evaluate(network, test, run.dataset, flip=True), run.dataset)
        return columns | {
            k.replace("test_", "test_flip_"): v for k, v in flipped.items() if k.startswith("test_accuracy")
        }


def _network_of(run: Run, epoch: int) -> nn.Module:
    """Return the network to evaluate and to write after an epoch, made once."""
    if run.network is None or run.network[0] != epoch:
        run.network = epoch, deployed(run, lambda: inputs_of(run, epoch))
    return run.network[1]


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
    parts = [f"train loss {row['train_loss']:.4f}"] if "train_loss" in row else []
    if "test_accuracy/all" in row:
        lanes = [lane for lane in ("all", "head", "medium", "tail") if f"test_accuracy/{lane}" in row]
        parts.append("test accuracy " + ", ".join(f"{lane} {row[f'test_accuracy/{lane}']:.3f}" for lane in lanes))
    return ", ".join(parts)


def _write_epoch(run: Run, out: Path) -> None:
    epoch = run.epochs_done
    # Before the state, so that a run killed in between writes it again.
    if run.spec.is_snapshot(epoch):
        network = _network_of(run, epoch - 1)
        write_checkpoint(out / files.snapshot_name(epoch), network.state_dict(), checkpoint_spec(run))
    _keep_best(run, out)
    state = {
        "spec": json.dumps(run.spec.to_dict()),
        "model": run.model.state_dict(),
        "method": run.method.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "resources": run.resources.state_dict(),
        "companion": run.companion.state_dict(),
        "history": run.history,
    }
    files.write_state(out / files.STATE, state)
    files.write_history(out / files.HISTORY, run.history)
    files.write_record(out / files.RECORD, run_record(run, is_finished=False))


def _keep_best(run: Run, out: Path) -> None:
    """Write the network of this epoch if it is the best one on the test images so far."""
    if run.spec.keep_best and best_row(run.history) is run.history[-1]:
        network = _network_of(run, run.epochs_done - 1)
        write_checkpoint(out / files.BEST, network.state_dict(), checkpoint_spec(run))


def _finish(run: Run, out: Path) -> Path:
    network = _network_of(run, max(run.epochs_done - 1, 0))
    path = write_checkpoint(out / files.CHECKPOINT, network.state_dict(), checkpoint_spec(run))
    if run.epochs_done == 0:
        _keep_best(run, out)
    files.write_history(out / files.HISTORY, run.history)
    files.write_record(out / files.RECORD, run_record(run, is_finished=True))
    (out / files.STATE).unlink(missing_ok=True)  # last: whatever failed before can be resumed
    return path
