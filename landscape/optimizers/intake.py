"""What an optimizer is built from and called with: taken for what it is, or refused in one line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from landscape.errors import LandscapeError, cause
from landscape.optimizers.terms import Closure, Rule, Task


def build_base(base: Any, groups: list[dict[str, Any]], options: dict[str, Any]) -> torch.optim.Optimizer:
    """Return the optimizer that makes the steps.

    Raises
    ------
    LandscapeError
        If it is no class of optimizers, evaluates closures itself, or does not take the options.
    """
    if not isinstance(base, type) or not issubclass(base, torch.optim.Optimizer):
        got = type(base).__name__ if isinstance(base, torch.optim.Optimizer) else repr(base)
        raise LandscapeError(
            f"base: expected a class of optimizers such as torch.optim.SGD, got {got}: its options go into base_options"
        )
    if issubclass(base, torch.optim.LBFGS):
        raise LandscapeError(
            "base: expected an optimizer that steps on a gradient, got LBFGS, which evaluates closures itself"
        )
    try:
        return base(groups, **options)
    except (TypeError, ValueError) as error:
        raise LandscapeError(
            f"base: {base.__name__} does not take these parameters and base_options: {cause(error)}"
        ) from error


def require_groups(rule: Rule, groups: Iterable[dict[str, Any]]) -> None:
    """Raise LandscapeError if a parameter group holds an option of the rule: it would be ignored."""
    own: set[str] = {field.name for field in fields(rule)} if is_dataclass(rule) else set()
    for group in groups:
        for option in sorted(own & set(group)):
            raise LandscapeError(
                f"param_groups: '{option}' is an option of {rule.name} and holds for all parameters, got one for a group "
                f"({group[option]!r}): pass {option}= to build_optimizer, or build an optimizer for each group"
            )


def require_known_options(rule: Rule, base: torch.optim.Optimizer, options: set[str]) -> None:
    """Raise LandscapeError if a parameter group holds an option of other rules (SAM's ``adaptive``): it would be ignored."""
    for group in base.param_groups:
        for option in sorted(options & set(group) - set(base.defaults)):
            raise LandscapeError(
                f"param_groups: '{option}' is no option of {rule.name} nor of {type(base).__name__}, got one for a group "
                f"({group[option]!r}): leave it out, or build another optimizer"
            )


def require_task(task: Task) -> None:
    """Raise LandscapeError unless what a rule may know of the task is what it is taken for."""
    if task.model is not None and not isinstance(task.model, nn.Module):
        raise LandscapeError(f"model: expected a torch.nn.Module, got {type(task.model).__name__}")
    if task.criterion is not None and not callable(task.criterion):
        raise LandscapeError(
            f"criterion: expected a callable (logits (B, C), labels (B,)) -> (B,), got {type(task.criterion).__name__}"
        )


def numbers_of(given: Any, name: str, *, below: int | None = None) -> Tensor:
    """Return whole numbers (K,), none of them negative; LandscapeError otherwise, or where one is not below a limit."""
    try:
        numbers = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise LandscapeError(f"{name}: expected whole numbers, got {given!r}") from error
    is_whole = not numbers.is_complex() and numbers.dtype != torch.bool and bool((numbers == numbers.round()).all())
    if numbers.dim() != 1 or not is_whole or bool((numbers < 0).any()):
        raise LandscapeError(f"{name}: expected whole numbers (K,), at least 0, got {numbers.tolist()}")
    if below is not None and bool((numbers >= below).any()):
        raise LandscapeError(f"{name}: classes run from 0 to {below - 1}, got {numbers.tolist()}")
    return numbers


def as_closures(rule: Rule, given: Any) -> list[Closure]:
    """Return the closures of a step; LandscapeError where a loss or nothing was passed."""
    if callable(given) and not isinstance(given, Tensor):
        return [given]
    closures = list(given) if isinstance(given, Sequence) else [given]
    if not all(callable(closure) and not isinstance(closure, Tensor) for closure in closures):
        got = "none" if given is None else type(given).__name__
        raise LandscapeError(
            f"{rule.name}: step needs a closure that returns per-example losses, got {got}: step(closure, labels), without "
            "backward, first_step or GradScaler.step (build_optimizer(..., precision='float16') scales by itself)"
        )
    return closures


def as_labels(rule: Rule, given: Any, num_classes: int | None) -> Tensor | None:
    """Return class indices (B,); LandscapeError where a rule needs them and there are none, or they are none."""
    if given is None:
        if "labels" in rule.needs:
            raise LandscapeError(f"{rule.name} needs the labels of the batch, got none: step(closure, labels=y)")
        return None
    labels: Tensor = given if isinstance(given, Tensor) else numbers_of(given, "labels")
    if labels.dim() != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise LandscapeError(
            f"labels must be class indices of shape (B,), got {labels.dtype} of shape {tuple(labels.shape)}: "
            "for mixed examples pass the labels of the dominant images"
        )
    # On other devices a look at them would wait.
    if num_classes is not None and labels.device.type == "cpu" and len(labels):
        low, high = int(labels.numpy().min()), int(labels.numpy().max())
        if low < 0 or high >= num_classes:
            raise LandscapeError(
                f"labels run from {low} to {high}, class_counts are those of {num_classes} classes: leave ignored examples out"
            )
    return labels.long()


def require_reached(rule: Rule, gradient: Sequence[Tensor | None]) -> None:
    """Raise LandscapeError if the losses depend on none of the parameters: the step would do nothing."""
    if all(part is None for part in gradient):
        raise LandscapeError(
            f"{rule.name}: the losses depend on none of the optimizer's parameters: build it with the parameters of the network "
            "that the closure evaluates (after whatever replaces them)"
        )
