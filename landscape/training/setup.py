"""What a run is made of, built from its specification: data, network, objective, optimizer, batches."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from landscape.checkpoint import load_weights, read_checkpoint
from landscape.data import Batches, Dataset, build_sampler
from landscape.errors import LandscapeError
from landscape.layout import choose_parameters
from landscape.losses import Reweighting, build_loss
from landscape.models import build_model, find_head, load_backbone
from landscape.optimizers import OPTIMIZERS, Companion, NeighbourhoodOptimizer, accompany, build_optimizer
from landscape.processes import Processes
from landscape.randomness import stream
from landscape.training.execution import compile_network, lay_out
from landscape.training.heads import SCALE, add_scale, tau_normalise
from landscape.training.methods import Method, Setting, build_method
from landscape.training.objective import Objective
from landscape.training.resources import Resources
from landscape.training.spec import BASES, TrainSpec

logger = logging.getLogger(__name__)


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
    companion: Companion
    batches: Batches
    history: list[dict[str, Any]]
    processes: Processes = field(default_factory=Processes)
    resources: Resources = field(default_factory=Resources)
    started_from: dict[str, Any] | None = (
        None  # what the checkpoint says about itself from whose weights the run started
    )
    network: tuple[int, nn.Module] | None = None  # an epoch, and the network that was evaluated after it
    drawing: torch.Generator = field(default_factory=torch.Generator)  # of the method; the loop sets it in every epoch

    @property
    def epochs_done(self) -> int:
        """Epochs that are trained."""
        return int(self.history[-1]["epoch"]) if self.history else 0

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
    model = build_network(spec, dataset, seed=spec.seed)
    if spec.reinitialise_head:
        # Another draw than the one that a first stage with this seed began with.
        own = stream(spec.seed, "training/reinitialised-head")
        drawn = build_network(spec, dataset, seed=int(torch.randint(2**31, (), generator=own)))
        find_head(model)[1].load_state_dict(find_head(drawn)[1].state_dict())
    started_from = None if spec.start is None else load_start(model, spec, folder)
    if spec.scale_head:
        add_scale(find_head(model)[1])
    choose_trainable(model, spec)
    num_inputs = spec.batch_size * math.prod(dataset.train.images.shape[1:])
    model = lay_out(model.to(device), num_inputs=num_inputs, device=device, precision=spec.precision)
    # Before the optimizer is built: it may replace parameters.
    companion = accompany(OPTIMIZERS[spec.optimizer](**spec.optimizer_options), model)
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
        is_trained=spec.start is not None,
    )
    method = build_method(spec.method, setting, **spec.method_options).to(device)
    optimizer = build_optimizer(
        spec.optimizer,
        parameter_groups(model, method, spec),
        base=BASES[spec.base],
        base_options=spec.base_options,
        model=model,
        criterion=objective,
        class_counts=dataset.train_counts,
        tail_classes=None if "eta" in spec.optimizer_options else dataset.groups.members.get("tail") or None,
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
        companion=companion,
        batches=Batches(
            dataset,
            batch_size=spec.batch_size,
            device=device,
            augment=spec.augment,
            sampler=build_sampler(spec.sampler, **spec.sampler_options),
        ),
        history=[],
        started_from=started_from,
    )


def build_network(spec: TrainSpec, dataset: Dataset, *, seed: int) -> nn.Module:
    """Return the network as initialised by a seed, on the CPU."""
    return build_model(
        spec.model,
        num_classes=dataset.num_classes,
        in_channels=dataset.train.images.shape[1],
        image_size=dataset.image_size,
        head=spec.resolved_head,
        seed=seed,
        **spec.model_options,
    )


def load_start(model: nn.Module, spec: TrainSpec, folder: Path | None) -> dict[str, Any]:
    """Load the weights that the run starts from and return what their file says about itself.

    With ``reinitialise_head`` the classifier stays as initialised, with ``tau`` it is tau-normalised.
    """
    assert spec.start is not None
    path = Path(spec.start).expanduser()
    if folder is not None and (folder / path).exists():
        path = folder / path
    checkpoint = read_checkpoint(path)
    if spec.reinitialise_head:
        head, fresh = find_head(model)[0], model.state_dict()
        kept = {name: tensor for name, tensor in checkpoint.state_dict.items() if not name.startswith(f"{head}.")}
        anew = {name: tensor for name, tensor in fresh.items() if name.startswith(f"{head}.")}
        checkpoint = replace(checkpoint, state_dict=kept | anew)
    own = model.state_dict()
    fits = all(name in checkpoint.state_dict and checkpoint.state_dict[name].shape == own[name].shape for name in own)
    if fits or spec.stage is not None:
        load_weights(model, checkpoint)
    else:
        left_out = load_backbone(model, checkpoint.state_dict)
        logger.warning("%s: only its backbone fits, the classifier starts anew%s", path, _without(left_out))
    if spec.tau is not None:
        tau_normalise(find_head(model)[1], spec.tau, bias=spec.tau_bias)
    return checkpoint.spec or {}


def _without(names: Sequence[str]) -> str:
    return f" (left out: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''})" if names else ""


def choose_trainable(model: nn.Module, spec: TrainSpec) -> None:
    """Hold fixed what ``spec.trainable`` does not choose."""
    if spec.trainable == "all":
        return
    head, named = find_head(model)[0], dict(model.named_parameters())
    if spec.trainable == "head-scale":
        chosen = {f"{head}.{SCALE}" if head else SCALE}
    else:
        chosen = set(choose_parameters(named, spec.trainable, head_name=head))
    for name, parameter in named.items():
        parameter.requires_grad_(name in chosen)


def parameter_groups(model: nn.Module, method: Method, spec: TrainSpec) -> list[Any]:
    """Return what is trained, in groups if the classifier has a learning rate of its own: ``lr_factor`` times the run's."""
    named = [*model.named_parameters(), *((f"method.{name}", p) for name, p in method.named_parameters())]
    trained = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    if spec.head_lr_factor == 1:
        return trained
    head = {id(parameter) for name, parameter in find_head(model)[1].named_parameters() if name != SCALE}
    groups = [
        {"params": [(name, p) for name, p in trained if id(p) not in head], "lr_factor": 1.0},
        {"params": [(name, p) for name, p in trained if id(p) in head], "lr_factor": float(spec.head_lr_factor)},
    ]
    return [group for group in groups if group["params"]]
