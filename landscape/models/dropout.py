"""Dropout whose masks come from a generator of its own, so that a training run can be repeated and resumed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from landscape.errors import LandscapeError


class Dropout(nn.Module):
    r"""Dropout, :math:`x_i\, b_i / (1 - p)` with :math:`b_i \sim \mathrm{Bernoulli}(1 - p)` in training mode.

    Parameters
    ----------
    p
        Share of the entries that become zero, from 0 up to, but not including, 1.

    Attributes
    ----------
    generator
        Source of the masks, on any device. :func:`landscape.models.build_model` assigns one;
        :func:`set_dropout_generator` replaces those of a whole network.

    Raises
    ------
    LandscapeError
        In training mode, if no generator has been assigned.
    """

    generator: torch.Generator | None = None

    def __init__(self, p: float) -> None:
        super().__init__()
        if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p < 1:
            raise LandscapeError(f"dropout: expected a share of at least 0 and below 1, got {p!r}")
        self.p = float(p)

    def forward(self, x: Tensor) -> Tensor:
        """Return the input, in training mode with a share of its entries zero and the others larger."""
        if not self.training or self.p == 0:
            return x
        if self.generator is None:
            raise LandscapeError("dropout draws masks in training mode: assign its generator, or call model.eval()")
        kept = torch.empty_like(x, device=self.generator.device).bernoulli_(1 - self.p, generator=self.generator)
        return x * (kept.to(x.device) / (1 - self.p))

    def extra_repr(self) -> str:
        """Return the share, for ``repr``."""
        return f"p={self.p:g}"


def set_dropout_generator(model: nn.Module, generator: torch.Generator) -> None:
    """Let all :class:`Dropout` layers of a network draw from one generator, such as that of an epoch's stream."""
    for layer in model.modules():
        if isinstance(layer, Dropout):
            layer.generator = generator
