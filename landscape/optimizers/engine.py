"""The engine: evaluates a rule's terms, restores the weights bit for bit and calls the base optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.memory import keep_freed_memory
from landscape.optimizers.companions import warn_if_alone
from landscape.optimizers.gradients import Gradient
from landscape.optimizers.intake import (
    as_closures,
    as_labels,
    build_base,
    require_groups,
    require_reached,
    require_task,
)
from landscape.optimizers.passes import Passes
from landscape.optimizers.precision import Arithmetic, Precision
from landscape.optimizers.terms import Batch, Closure, Moment, Rule, Task
from landscape.processes import Processes
from landscape.randomness import stream


class NeighbourhoodOptimizer(torch.optim.Optimizer):
    r"""A base optimizer whose gradient is a sum of gradients at perturbed weights.

    .. math:: g = \sum_t \nabla_\theta \Big[\tfrac1B \sum_i w_t(i)\, \ell_i\Big](\theta + \epsilon_t), \qquad
              \theta \leftarrow \mathrm{base}(\theta, g)

    Build it with :func:`landscape.optimizers.build_optimizer`.

    Parameters
    ----------
    params
        Parameters, named parameters or parameter groups, as for any torch optimizer.
    rule
        The method: one of the dataclasses in ``OPTIMIZERS``.
    base, base_options
        Class of the optimizer that makes the step, and its options (learning rate, momentum, weight decay ...).
    task
        What the rule may know besides the batch; its tensors are moved to the device of the first parameter.
    bn_statistics
        ``"every-pass"``: every forward pass updates the running statistics of normalisation layers, also those at
        perturbed weights (what the papers' code does). ``"first-pass"``: the model's buffers are put back after the
        step to what the first forward pass left; needs the model.
    precision
        ``"float32"``: the passes run in whatever the weights are. ``"bfloat16"``, ``"float16"``: the closures run under
        ``torch.autocast``; with float16 losses are scaled and overflowing steps left out, see
        :class:`landscape.optimizers.precision.Arithmetic`.

    Attributes
    ----------
    base : torch.optim.Optimizer
        It shares ``param_groups`` and ``state`` with this object, so a learning-rate scheduler may be attached to
        either. Hooks on its step see the summed gradient in ``.grad``, e.g. to clip it.
    num_forwards, num_backwards : int
        Forward and backward passes through the model since construction, over whole batches.
    memory : dict[str, Tensor]
        What the rule keeps from step to step, if it does.
    processes : Processes
        Those that share the batches of steps with ``first_row``; the training loop sets it.
    perturbation_scope : str
        With several processes, ``"global"``: the gradient of the whole batch gives one perturbation for all; ``"local"``:
        each process perturbs by the gradient of its own examples, as SAM was first run on several accelerators.
    epoch : int
        0-based epoch of the schedule; 0 until :meth:`start_epoch` is called.

    Notes
    -----
    1. Weight decay belongs to the base optimizer and acts at the restored weights: it sees g(theta + eps) and theta.
    2. ``.grad`` is set for the base step only and put back afterwards; gradients that a caller accumulated are not
       used.
    3. Parameters that do not require a gradient, or that no loss depends on, are neither moved nor decayed.
    4. Nothing in a step waits for the device: no value is read back, no shape depends on data. Loss scaling is the
       exception: torch's scaler asks once per step whether it overflowed.
    5. Dropout draws a new mask in every forward pass, as in the released code of all these methods.
    """

    def __init__(
        self,
        params: Iterable[Any],
        rule: Rule,
        *,
        base: type[torch.optim.Optimizer] = torch.optim.SGD,
        base_options: dict[str, Any] | None = None,
        task: Task | None = None,
        bn_statistics: Literal["every-pass", "first-pass"] = "every-pass",
        precision: Precision = "float32",
    ) -> None:
        if bn_statistics not in ("every-pass", "first-pass"):
            raise LandscapeError(f"bn_statistics must be every-pass or first-pass, got {bn_statistics!r}")
        if bn_statistics == "first-pass" and (task is None or task.model is None):
            raise LandscapeError("bn_statistics='first-pass' needs the model, got none: pass model=... as well")
        task = task or Task()
        require_task(task)
        super().__init__(params, {})
        require_groups(rule, self.param_groups)
        self.base = build_base(base, self.param_groups, base_options or {})
        self.base.register_load_state_dict_post_hook(self._share)
        self._share()
        self.rule = rule
        if self.base.param_groups[0]["params"][0].device.type == "cpu":
            keep_freed_memory()
        self.task = self._on_device(task)
        self.bn_statistics = bn_statistics
        self.arithmetic = Arithmetic(precision, self.base.param_groups[0]["params"][0].device.type)
        self.processes = Processes()
        self.perturbation_scope: Literal["global", "local"] = "global"
        self.memory: dict[str, Tensor] = {}
        self._copies: list[Tensor] | None = None
        self._names: dict[int, str] = {}
        self.num_forwards = 0
        self.num_backwards = 0
        self.epoch = 0
        self.num_epochs: int | None = None
        self.generator = self._default_generator()

    def start_epoch(self, epoch: int, num_epochs: int, generator: torch.Generator | None = None) -> None:
        """Set the quantities that depend on the epoch, and the generator of this epoch's noise.

        Parameters
        ----------
        epoch, num_epochs
            The epoch that starts, from 0, and the number of epochs of the whole training.
        generator
            Source of the noise; by default the stream ``optimizer/noise/epoch=<epoch>`` of root seed 0, on the
            device of the first parameter, so that a run resumed at an epoch draws the same noise.
        """
        if not 0 <= epoch < num_epochs:
            raise LandscapeError(f"start_epoch expects 0 <= epoch < num_epochs, got epoch {epoch} of {num_epochs}")
        self.epoch = epoch
        self.num_epochs = num_epochs
        self.generator = self._default_generator() if generator is None else generator

    def step(  # type: ignore[override]
        self,
        closure: Closure | Sequence[Closure] | None = None,
        labels: Tensor | None = None,
        ascent: Closure | Sequence[Closure] | None = None,
        *,
        first_row: int | None = None,
    ) -> Tensor:
        r"""Make one step.

        Parameters
        ----------
        closure
            Runs a forward pass and returns the losses of the batch, (B,), with their graph and without calling
            backward. It is called once per forward pass of the method, always on the same batch. A sequence of closures
            evaluates the batch in pieces, one after the other: the memory of a piece, and the step of the whole batch, with
            the gradient :math:`\sum_k B_k g_k / B`. Where rules need several gradients at theta, or one that depends on
            all pieces, the pieces run again. Normalisation layers see each piece alone.
        labels
            Class indices of the whole batch, (B,) integer; needed by the rules that treat classes differently.
        ascent
            As ``closure``, for the losses from which perturbations are computed; by default the same. They are then
            evaluated in a forward pass of their own.
        first_row
            The row of ``labels`` at which this process's closures begin: the batch is shared with other
            :attr:`processes`, over which gradients are averaged. None: this process evaluates the whole batch.

        Returns
        -------
        Tensor
            The mean loss of this process's examples where they were evaluated first, a detached scalar on the losses'
            device.

        Raises
        ------
        LandscapeError
            If labels are missing, or the closure does not return (B,) losses with a graph. Weights, ``.grad`` and, with
            ``"first-pass"``, buffers are restored whatever the closure raises.
        """
        closures = as_closures(self.rule, closure)
        ascents = None if ascent is None else as_closures(self.rule, ascent)
        counts = self.task.class_counts
        labels = as_labels(self.rule, labels, None if counts is None else len(counts))
        if self.num_epochs is None and "num_epochs" in self.rule.needs:
            raise LandscapeError(
                f"{self.rule.name} changes during training, but the epoch is not known: "
                "call start_epoch(epoch, num_epochs) before the first step of every epoch"
            )
        if not closures or (ascents is not None and len(ascents) != len(closures)):
            raise LandscapeError(
                f"{self.rule.name}: step needs as many closures of the ascent as of the descent, and at least one, got "
                f"{0 if ascents is None else len(ascents)} and {len(closures)}: pass one for each piece of the batch"
            )
        is_local = first_row is not None and self.processes.size > 1 and self.perturbation_scope == "local"
        params = [p for group in self.base.param_groups for p in group["params"] if p.requires_grad]
        if self.num_forwards == 0:
            warn_if_alone(self.rule, params)
        keeps_buffers = self.bn_statistics == "first-pass" and self.task.model is not None
        passes = Passes(
            params,
            num_pieces=len(closures),
            arithmetic=self.arithmetic,
            processes=Processes() if first_row is None else self.processes,
            rows=(first_row or 0, None if labels is None else len(labels)),
            buffers=list(self.task.model.buffers()) if keeps_buffers and self.task.model is not None else (),
        )
        batch = Batch(
            passes,
            closures,
            closures if is_local and ascents is None else ascents,
            labels=labels,
            names=self._names_of(params) if "names" in self.rule.needs else (),
            task=self.task,
            moment=Moment(self.epoch, self.num_epochs, self.generator),
        )
        batch.memory = dict(self.memory)
        batch.copies = self._copies
        batch.ascent_processes = Processes() if is_local else None
        self.arithmetic.start_step(params)
        try:
            with torch.no_grad():
                gradient = batch.total(self.rule.terms(batch))
        finally:
            batch.close()
            self.num_forwards += passes.num_forwards
            self.num_backwards += passes.num_backwards
            self._copies = batch.copies
        require_reached(self.rule, gradient)
        self.memory = batch.memory
        if batch.shift is not None:
            with torch.no_grad():
                torch._foreach_add_(params, list(batch.shift))
        self._base_step(params, gradient)
        return passes.first_loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, as for any torch optimizer."""
        base = self.__dict__.get("base")
        if base is None:  # called by the constructor of the torch class
            super().add_param_group(param_group)
        else:
            base.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """Return the base optimizer's state, with the rule's under ``"neighbourhood"``: plain values and tensors."""
        own = {
            "rule": self.rule.name,
            "epoch": self.epoch,
            "num_epochs": self.num_epochs,
            "num_forwards": self.num_forwards,
            "num_backwards": self.num_backwards,
        }
        if self.memory:
            own["memory"] = dict(self.memory)
        if self.arithmetic.scaler is not None:
            own["scaler"] = self.arithmetic.scaler.state_dict()
        if "generator" in self.rule.needs:
            own |= {"generator_device": self.generator.device.type, "generator_state": self.generator.get_state()}
        return {**self.base.state_dict(), "neighbourhood": own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned, or the state of a plain base optimizer.

        A noise generator continues where it was, unless its device is missing here: then the epoch's default one
        starts.

        Raises
        ------
        LandscapeError
            If the state belongs to another rule.
        """
        base_state = dict(state_dict)
        own = base_state.pop("neighbourhood", None)
        if own is not None and own["rule"] != self.rule.name:
            raise LandscapeError(
                f"cannot load the state of '{own['rule']}' into '{self.rule.name}': build the optimizer that was saved"
            )
        self.base.load_state_dict(base_state)
        if own is None:
            return
        self.epoch, self.num_epochs = own["epoch"], own["num_epochs"]
        self.num_forwards, self.num_backwards = own["num_forwards"], own["num_backwards"]
        place = self.base.param_groups[0]["params"][0].device
        self.memory = {name: tensor.to(place) for name, tensor in own.get("memory", {}).items()}
        if self.arithmetic.scaler is not None and own.get("scaler"):
            self.arithmetic.scaler.load_state_dict(own["scaler"])
        self.generator = self._default_generator()
        device = own.get("generator_device")
        if device is not None and (device == "cpu" or torch.accelerator.is_available()):
            self.generator = torch.Generator(device=device)
            self.generator.set_state(own["generator_state"].cpu())

    def _on_device(self, task: Task) -> Task:
        """Move the task's constants once, so that no step waits for a copy."""
        device = self.base.param_groups[0]["params"][0].device
        counts, tail = task.class_counts, task.tail_classes
        return replace(
            task,
            class_counts=None if counts is None else counts.to(device),
            tail_classes=None if tail is None else tail.to(device),
        )

    def _names_of(self, params: list[Tensor]) -> list[str]:
        if any(id(p) not in self._names for p in params):
            for group in self.base.param_groups:
                self._names |= {id(p): name for p, name in zip(group["params"], group.get("param_names", ()))}
            if self.task.model is not None:
                self._names |= {id(p): name for name, p in self.task.model.named_parameters()}
        if any(id(p) not in self._names for p in params):
            raise LandscapeError(
                f"{self.rule.name} needs the names of all parameters, but some have none: "
                "pass model=... or model.named_parameters()"
                + (", or choose variant='all-parameters'" if self.rule.name == "asam" else "")
            )
        return [self._names[id(p)] for p in params]

    def _base_step(self, params: list[Tensor], gradient: Gradient) -> None:
        everything = [p for group in self.base.param_groups for p in group["params"]]
        before = [p.grad for p in everything]
        try:
            for p in everything:
                p.grad = None
            for p, g in zip(params, gradient):
                p.grad = g
            self.arithmetic.finish_step(self.base, params)
        finally:
            for p, grad in zip(everything, before):
                p.grad = grad

    def _share(self, _: torch.optim.Optimizer | None = None) -> None:
        """Point at the base optimizer's groups and state; loading a state replaces both objects there."""
        self.param_groups = self.base.param_groups
        self.state = self.base.state
        self.defaults = self.base.defaults

    def _default_generator(self) -> torch.Generator:
        device = self.base.param_groups[0]["params"][0].device
        return stream(0, f"optimizer/noise/epoch={self.epoch}", device=device)
