"""What a run is made of, built from its specification: data, network, objective, optimizer, batches."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from landscape.checkpoint import load_weights, read_checkpoint
from landscape.data import Batches, Dataset, build_sampler
from landscape.errors import LandscapeError
from landscape.layout import choose_parameters
from landscape.losses import Reweighting, build_loss
from landscape.models import build_model, find_head
from landscape.optimizers import NeighbourhoodOptimizer, build_optimizer
from landscape.processes import Processes
from landscape.training.execution import compile_network, lay_out
from landscape.training.methods import Method, Setting, build_method
from landscape.training.objective import Objective
from landscape.training.resources import Resources
from landscape.training.spec import BASES, TrainSpec


@dataclass
class Run:
    """What an epoch needs."""

    spec: TrainSpec
    dataset: Dataset
    device: torch.device
    model: nn.Module
    objective: Objective
    method: Method
    optimizer: NeighbourhoodOptimizer
    batches: Batches
    history: list[dict[str, Any]]
    processes: Processes = field(default_factory=Processes)
    resources: Resources = field(default_factory=Resources)
    drawing: torch.Generator = field(default_factory=torch.Generator)  # of the method; the loop sets it in every epoch

    @property
    def num_inputs(self) -> int:
        """Numbers in a batch of inputs."""
        return self.spec.batch_size * math.prod(self.dataset.train.images.shape[1:])


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device to compute on; ``auto`` is the GPU if there is one; LandscapeError if it is not there.

    Under ``torchrun`` each process of a machine has a GPU of its own.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if str(device) == "cuda" and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise LandscapeError(f"cannot compute on device '{device}' ({reason}): choose auto, cpu or cuda") from None
    return resolved


def build_run(
    spec: TrainSpec, device: torch.device, *, folder: Path | None = None, dataset: Dataset | None = None
) -> Run:
    """Build everything that a run needs from its specification, at epoch 0.

    ``folder`` is where the run is written; ``spec.start`` may be relative to it. ``dataset`` is the specification's
    data set where it has been loaded before.
    """
    dataset = dataset or spec.load_data()
    model = build_network(spec, dataset)
    if spec.start is not None:
        load_start(model, spec, folder)
    trained = choose_trainable(model, spec)
    num_inputs = spec.batch_size * math.prod(dataset.train.images.shape[1:])
    model = lay_out(model.to(device), num_inputs=num_inputs, device=device, precision=spec.precision)
    loss = build_loss(spec.loss, dataset.train_counts, **spec.loss_options)
    reweighting = Reweighting(spec.reweight, dataset.train_counts, beta=spec.reweight_beta, start_epoch=spec.drw_epoch)
    objective = Objective(loss, reweighting).to(device)
    setting = Setting(
        model,
        objective,
        dataset.train_counts,
        spec.epochs,
        mixup=spec.mixup,
        mean=dataset.mean,
        std=dataset.std,
        seed=spec.seed,
    )
    method = build_method(spec.method, setting, **spec.method_options).to(device)
    optimizer = build_optimizer(
        spec.optimizer,
        [(name, p) for name, p in model.named_parameters() if name in trained]
        + [(f"method.{name}", p) for name, p in method.named_parameters() if p.requires_grad],
        base=BASES[spec.base],
        base_options=spec.base_options,
        model=model,
        criterion=objective,
        class_counts=dataset.train_counts,
        tail_classes=None if "eta" in spec.optimizer_options else dataset.groups.members["tail"] or None,
        bn_statistics=spec.bn_statistics,
        precision=spec.precision,
        **spec.optimizer_options,
    )
    if spec.compile:
        is_watched = spec.method != "plain" or "head" in optimizer.rule.needs
        compile_network(model, find_head(model)[1] if is_watched else None, device)
    return Run(
        spec=spec,
        dataset=dataset,
        device=device,
        model=model,
        objective=objective,
        method=method,
        optimizer=optimizer,
        batches=Batches(
            dataset,
            batch_size=spec.batch_size,
            device=device,
            augment=spec.augment,
            sampler=build_sampler(spec.sampler, **spec.sampler_options),
        ),
        history=[],
    )


def build_network(spec: TrainSpec, dataset: Dataset) -> nn.Module:
    """Return the network as initialised by the run's seed, on the CPU."""
    return build_model(
        spec.model,
        num_classes=dataset.num_classes,
        in_channels=dataset.train.images.shape[1],
        image_size=dataset.image_size,
        head=spec.resolved_head,
        seed=spec.seed,
    )


def load_start(model: nn.Module, spec: TrainSpec, folder: Path | None) -> None:
    """Load the weights that the run starts from; with ``reinitialise_head`` the classifier stays as initialised."""
    assert spec.start is not None
    path = Path(spec.start).expanduser()
    if folder is not None and (folder / path).exists():
        path = folder / path
    checkpoint = read_checkpoint(path)
    if spec.reinitialise_head:
        head, fresh = find_head(model)[0], model.state_dict()
        kept = {name: tensor for name, tensor in checkpoint.state_dict.items() if not name.startswith(f"{head}.")}
        own = {name: tensor for name, tensor in fresh.items() if name.startswith(f"{head}.")}
        checkpoint = replace(checkpoint, state_dict=kept | own)
    load_weights(model, checkpoint)


def choose_trainable(model: nn.Module, spec: TrainSpec) -> set[str]:
    """Hold fixed what ``spec.trainable`` does not choose; return the names of what is trained."""
    if spec.trainable == "all":
        return {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    chosen = set(choose_parameters(dict(model.named_parameters()), spec.trainable, head_name=find_head(model)[0]))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    return chosen


def set_training_mode(run: Run) -> None:
    """Put everything in training mode; normalisation layers whose weights are held fixed as the specification says."""
    run.model.train()
    run.objective.train()
    run.method.train()
    if run.spec.frozen_batchnorm == "update":
        return
    for layer in run.model.modules():
        own = list(layer.parameters(recurse=False))
        if isinstance(layer, _BatchNorm) and not any(p.requires_grad for p in own):
            layer.eval()
