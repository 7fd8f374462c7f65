"""Logits under noise that grows with the rarity of the class."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from landscape.errors import LandscapeError
from landscape.losses.inputs import (
    Counts,
    checked_logits,
    cross_entropy,
    is_target,
    validated_counts,
    validated_number,
)


class GCL(nn.Module):
    r"""Gaussian clouded logits, :math:`\text{CE}(s\,(z - a\,|u|\,\hat m - m\, e_y))` on cosines z.

    .. math:: \hat m_c = (\log n_{\max} - \log n_c) / (\log n_{\max} - \log n_{\min}), \qquad
              u \sim \text{clip}(N(0, 1/3^2), \pm 1) \text{ for each logit}

    Parameters
    ----------
    scale, margin, noise_mul
        s, m and a: 30, 0 and 0.5 in the released first stage; 20, 0.1, 0.5 in its second; 25, 0.1, 1 in GNM.

    Attributes
    ----------
    generator
        Where the noise comes from; assign one before training. None by default.

    Raises
    ------
    LandscapeError
        In training mode, if no generator has been assigned.

    Notes
    -----
    Source: Li et al., *Long-tailed Visual Recognition via Gaussian Clouded Logit Adjustment*, CVPR 2022, and released
    code. Differs in: 1. the noise is drawn in training mode only, there also in evaluation, where it would make two
    evaluations of the loss differ; 2. the second stage's focal factor is left out; 3. with equal counts, where the
    released code divides by zero, there is no noise.
    """

    generator: torch.Generator | None = None
    clouds: Tensor

    def __init__(
        self, class_counts: Counts, *, scale: float = 30.0, margin: float = 0.0, noise_mul: float = 0.5
    ) -> None:
        super().__init__()
        counts = validated_counts(class_counts)
        self.scale = validated_number("scale", scale, above=0)
        self.margin = validated_number("margin", margin)
        self.noise_mul = validated_number("noise_mul", noise_mul, minimum=0)
        rarity = counts.max().log() - counts.log()
        self.num_classes = len(counts)
        self.register_buffer("clouds", rarity / rarity.max() if rarity.max() > 0 else rarity)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each example, (B, C), (B,) -> (B,); with noise in training mode."""
        adjusted = logits - self.margin * is_target(checked_logits(logits, self.num_classes), labels)
        if self.training and self.noise_mul > 0:
            adjusted = adjusted - self.noise_mul * self._noise(logits) * self.clouds.to(logits.dtype)
        return cross_entropy(self.scale * adjusted, labels)

    def _noise(self, logits: Tensor) -> Tensor:
        """Draw :math:`|u|` for each logit on the generator's device, (B, C)."""
        if self.generator is None:
            raise LandscapeError("gcl draws noise in training mode: assign loss.generator, or call loss.eval()")
        draw = torch.empty_like(logits, device=self.generator.device).normal_(std=1 / 3, generator=self.generator)
        return draw.clamp_(-1, 1).abs_().to(logits.device)
