"""The per-example losses that training averages."""

from __future__ import annotations

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

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the losses, (B,)."""
        return self.reweighting.weigh(self.loss, logits, labels, self.epoch)
