"""What a training method is given and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

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
    mean, std
        Per channel, of pixels scaled to [0, 1]: what the images were normalised with.
    seed
        Root seed of the run, for the initial weights of a method's own networks.
    is_trained
        Whether the network starts from trained weights, such as those of a first stage.
    """

    model: nn.Module
    objective: nn.Module
    class_counts: tuple[int, ...]
    epochs: int
    mixup: float = 0.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    seed: int = 0
    is_trained: bool = False


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
    partner_views, partner_labels
        A second batch of the same size, of the examples in :meth:`Method.partner_order`; None where that is None.
    """

    views: tuple[Tensor, ...]
    labels: Tensor
    generator: torch.Generator
    partner_views: tuple[Tensor, ...] | None = None
    partner_labels: Tensor | None = None


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
    """Base of the methods: a module, so that networks and queues of its own are trained, moved and saved along.

    Attributes
    ----------
    num_views
        Augmented views of each image in a batch.
    fixed
        Fields of the specification that must have one value, because the method replaces what they choose.
    unsupported
        What the method cannot give an optimizer, out of the needs of :class:`landscape.optimizers.Rule`.
    """

    num_views: ClassVar[int] = 1
    fixed: ClassVar[Mapping[str, Any]] = {}
    unsupported: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        # Not registered: the model and the objective belong to the run.
        object.__setattr__(self, "setting", setting)
        self.epoch = 0

    setting: Setting

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Raise LandscapeError for an option out of range; ``options`` are complete, with the defaults."""

    @property
    def view_augmentations(self) -> tuple[str | None, ...]:
        """Name in ``TRANSFORMS`` of each view's augmentation; None: the run's own."""
        return (None,) * self.num_views

    @property
    def phases(self) -> tuple[int, ...]:
        """Epochs at which a step's cost changes, the first is 0."""
        return (0,)

    def example_order(self, labels: Tensor, generator: torch.Generator) -> Tensor | None:
        """Return which training examples make up this epoch, (M,) int64; None: what the run's sampler says.

        ``labels`` are those of the training split, on the CPU.
        """
        return None

    def partner_order(self, labels: Tensor, generator: torch.Generator) -> Tensor | None:
        """Return the examples of the batches' partners, as many as the epoch has; None: batches have no partners."""
        return None

    def start_epoch(self, epoch: int) -> None:
        """Take note of the epoch, counted from 0."""
        self.epoch = epoch

    def closures(self, batch: MiniBatch) -> Closures:
        """Return what the optimizer evaluates; draws everything random first, so that every pass sees the same."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Update what follows the weights, such as a momentum encoder or a queue."""
