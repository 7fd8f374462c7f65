"""The per-example losses that training averages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from landscape.losses import Reweighting


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
        self._whole: Tensor | None = None  # labels of the batch that is evaluated in parts

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the losses, (B,), in float32 whatever the network ran in."""
        kind = logits.device.type
        if torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):
                return self._weighed(logits.float(), labels)
        return self._weighed(logits, labels)

    @contextmanager
    def part_of(self, labels: Tensor) -> Iterator[None]:
        """Evaluate parts of a batch inside, whose class weights are divided by their mean over the batch's ``labels``."""
        self._whole = labels
        try:
            yield
        finally:
            self._whole = None

    def _weighed(self, logits: Tensor, labels: Tensor) -> Tensor:
        losses = self.reweighting.weigh(self.loss, logits, labels, self.epoch)
        weights = self.reweighting.weights(self.epoch)
        if self._whole is None or weights is None or getattr(self.loss, "weights_inside", False):
            return losses
        return losses * (weights[labels].mean() / weights[self._whole].mean()).to(losses.dtype)
