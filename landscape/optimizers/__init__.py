"""Sharpness-aware and saddle-escaping optimizers of the long-tailed literature, on one engine.

``OPTIMIZERS`` maps the names that users type to rules; :func:`build_optimizer` puts a rule on any torch optimizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any, Literal

import torch
from torch import Tensor, nn

from landscape.errors import LandscapeError, unknown_name
from landscape.optimizers.ascent import ASAM, GNP, SAM, SGD
from landscape.optimizers.averaging import SWA
from landscape.optimizers.class_conditional import CCSAM
from landscape.optimizers.companions import Companion, accompany
from landscape.optimizers.engine import NeighbourhoodOptimizer
from landscape.optimizers.focal import FocalSAM
from landscape.optimizers.head_tail import SSESAM, ImbSAM
from landscape.optimizers.intake import numbers_of, require_known_options
from landscape.optimizers.model_perturbation import ModelPerturbation
from landscape.optimizers.noise import GNM, LPF
from landscape.optimizers.normalising import SpectralNorm
from landscape.optimizers.precision import Precision
from landscape.optimizers.saddle_escape import PerturbedGD
from landscape.optimizers.terms import Batch, Criterion, Rule, Task, Term

__all__ = [
    "ASAM",
    "CCSAM",
    "GNM",
    "GNP",
    "LPF",
    "OPTIMIZERS",
    "SAM",
    "SGD",
    "SSESAM",
    "SWA",
    "Batch",
    "Companion",
    "FocalSAM",
    "ImbSAM",
    "ModelPerturbation",
    "NeighbourhoodOptimizer",
    "PerturbedGD",
    "Rule",
    "SpectralNorm",
    "Task",
    "Term",
    "accompany",
    "build_optimizer",
]

OPTIMIZERS: dict[str, type] = {
    "sgd": SGD,
    "sam": SAM,
    "asam": ASAM,
    "imbsam": ImbSAM,
    "ccsam": CCSAM,
    "ssesam": SSESAM,
    "gnm": GNM,
    "focal-sam": FocalSAM,
    "gnp": GNP,
    "lpf": LPF,
    "mp": ModelPerturbation,
    "perturbed-gd": PerturbedGD,
    "swa": SWA,
    "spectral-norm": SpectralNorm,
}


def build_optimizer(
    name: str,
    params: Iterable[Any],
    *,
    base: type[torch.optim.Optimizer] = torch.optim.SGD,
    base_options: dict[str, Any] | None = None,
    model: nn.Module | None = None,
    criterion: Criterion | None = None,
    class_counts: Sequence[int] | Tensor | None = None,
    tail_classes: Sequence[int] | None = None,
    bn_statistics: Literal["every-pass", "first-pass"] = "every-pass",
    precision: Precision = "float32",
    **rule_options: Any,
) -> NeighbourhoodOptimizer:
    """Return the method ``name`` on top of a base optimizer.

    Parameters
    ----------
    name
        A key of ``OPTIMIZERS``.
    params
        Parameters, named parameters or parameter groups, as for any torch optimizer.
    base, base_options
        Class of the optimizer that makes the step, and its options.
    model
        The network; needed by ``ccsam`` (its head), by ``asam`` and ``mp`` (parameter names) and by
        ``bn_statistics="first-pass"``. For ``swa`` and ``spectral-norm`` see :func:`accompany`: they act on the network
        outside the steps.
    criterion
        ``criterion(logits (B, C), labels (B,)) -> (B,)``, the loss that the closure applies; needed by ``ccsam``.
    class_counts
        Training examples per class, (C,); needed by ``ccsam`` and ``focal-sam``, and by ``imbsam`` and ``ssesam`` without
        ``tail_classes``.
    tail_classes
        Class indices of the tail; by default the classes with fewer than ``eta`` examples.
    bn_statistics
        Whether forward passes at perturbed weights update running statistics, see :class:`NeighbourhoodOptimizer`.
    precision
        ``"float32"``, or automatic mixed precision in ``"bfloat16"`` or ``"float16"``, see the same class.
    **rule_options
        Options of the rule, the fields of its dataclass, e.g. ``rho=0.1``.

    Returns
    -------
    NeighbourhoodOptimizer
        Call its ``step(closure, labels)``, and ``start_epoch(epoch, num_epochs)`` before each epoch.

    Raises
    ------
    LandscapeError
        For an unknown name or option, a value out of range, or something missing that the rule needs.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Linear(2, 3)
    >>> x, y = torch.zeros(4, 2), torch.tensor([0, 0, 1, 2])
    >>> optimizer = build_optimizer("sam", model.parameters(), base_options={"lr": 0.1}, rho=0.1)
    >>> loss = optimizer.step(lambda: torch.nn.functional.cross_entropy(model(x), y, reduction="none"), labels=y)
    >>> optimizer.num_forwards, optimizer.num_backwards
    (2, 2)
    """
    if name not in OPTIMIZERS:
        raise unknown_name("optimizer", name, OPTIMIZERS)
    options = [field.name for field in fields(OPTIMIZERS[name])]
    for option in rule_options:
        if option not in options:
            raise unknown_name(f"option of {name}", option, options)
    rule: Rule = OPTIMIZERS[name](**rule_options)
    counts = None if class_counts is None else numbers_of(class_counts, "class_counts")
    task = Task(
        model=model,
        criterion=criterion,
        head=_head(rule, model),
        class_counts=counts,
        tail_classes=_tail_classes(rule, counts, tail_classes),
    )
    for need in ("criterion", "class_counts"):
        if need in rule.needs and getattr(task, need) is None:
            raise LandscapeError(f"{name} needs {need}, got none: build_optimizer('{name}', ..., {need}=...)")
    optimizer = NeighbourhoodOptimizer(
        params, rule, base=base, base_options=base_options, task=task, bn_statistics=bn_statistics, precision=precision
    )
    # Besides those of our rules the switch of widespread SAM classes, which makes them ASAM.
    foreign = {field.name for kind in OPTIMIZERS.values() for field in fields(kind)} | {"adaptive"}
    require_known_options(rule, optimizer.base, foreign)
    return optimizer


def _head(rule: Rule, model: nn.Module | None) -> nn.Module | None:
    if "head" not in rule.needs:
        return None
    if model is None:
        raise LandscapeError(f"{rule.name} needs model, got none: build_optimizer('{rule.name}', ..., model=...)")
    from landscape.models import find_head  # only this rule needs the models

    return find_head(model)[1]


def _tail_classes(rule: Rule, counts: Tensor | None, given: Sequence[int] | None) -> Tensor | None:
    """Return the tail's class indices: those given, else the classes below the rule's threshold."""
    if "tail_classes" not in rule.needs:
        return None
    if given is not None:
        if len(given) == 0:
            raise LandscapeError(f"{rule.name}: tail_classes is empty: name at least one class, or leave it out")
        return numbers_of(given, "tail_classes", below=None if counts is None else len(counts)).long()
    if counts is None:
        raise LandscapeError(
            f"{rule.name} needs to know the tail classes, got neither tail_classes nor class_counts: "
            f"build_optimizer('{rule.name}', ..., class_counts=...)"
        )
    eta = getattr(rule, "eta")  # noqa: B009  (the protocol does not list the options)
    tail = torch.nonzero(counts < eta).flatten()
    if len(tail) == 0:
        raise LandscapeError(
            f"{rule.name}: no class has fewer than eta = {eta:g} examples (the rarest has {int(counts.min())}): "
            "raise eta or pass tail_classes"
        )
    return tail
