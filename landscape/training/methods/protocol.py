"""What a training method is given and what it returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Setting:
    """What a method may know when it is built.

    Attributes
    ----------
    model
        The network that is trained; its classifier is found by :func:`landscape.models.find_head`.
    objective
        Per-example loss with the epoch's class weights, (B, C) logits and (B,) labels to (B,).
    class_counts
        Training examples of each class.
    epochs
        Length of the training.
    mixup
        Parameter of mixup's Beta distribution; 0: no mixup.
    """

    model: nn.Module
    objective: nn.Module
    class_counts: tuple[int, ...]
    epochs: int
    mixup: float = 0.0


@dataclass(frozen=True)
class MiniBatch:
    """One batch of training.

    Attributes
    ----------
    views
        Normalised images (B, C, H, W), one tensor per augmented view; the first is the usual one.
    labels
        (B,) int64.
    generator
        CPU generator of this epoch for what the method draws (partners, mixing coefficients).
    """

    views: tuple[Tensor, ...]
    labels: Tensor
    generator: torch.Generator


@dataclass(frozen=True)
class Closures:
    """What the optimizer evaluates on a batch.

    Attributes
    ----------
    descent
        Runs a forward pass and returns the per-example losses (B,) that are minimised.
    labels
        Class of each example, (B,); of mixed ones the dominant image's.
    ascent
        Losses from which perturbations are computed, where they are others than those minimised.
    """

    descent: Callable[[], Tensor]
    labels: Tensor
    ascent: Callable[[], Tensor] | None = None


class Method(nn.Module):
    """Base of the methods: a module, so that networks and queues of its own are trained, moved and saved along."""

    num_views = 1

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        # Not registered: the model and the objective belong to the run.
        object.__setattr__(self, "setting", setting)
        self.epoch = 0

    setting: Setting

    def start_epoch(self, epoch: int) -> None:
        """Take note of the epoch, counted from 0."""
        self.epoch = epoch

    def closures(self, batch: MiniBatch) -> Closures:
        """Return what the optimizer evaluates; draws everything random first, so that every pass sees the same."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Update what follows the weights, such as a momentum encoder or a queue."""
