r"""Operations on the colours of 8-bit images, pixel for pixel those of Pillow, for batches on any device.

Every function takes images (n, C, H, W) uint8 with one or three channels and one number per image, (n,). The enhancers
are Pillow's :math:`d + a\,(x - d)` in single precision, cut to [0, 255] and truncated, with a degenerate image d: black
(brightness), the mean grey (contrast), the grey image (saturation), the smoothed image (sharpness).
"""

from __future__ import annotations

import torch
from torch import Tensor

from landscape.errors import LandscapeError


def grey(images: Tensor) -> Tensor:
    r"""Return the luminance, (n, 1, H, W) int32: :math:`(19595 R + 38470 G + 7471 B + 2^{15}) / 2^{16}`, rounded down."""
    levels = images.to(torch.int32)
    if images.shape[1] == 1:
        return levels
    red, green, blue = levels.unbind(1)
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16)[:, None]


def brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Scale towards or away from black; 0 is black, 1 the image."""
    return _enhanced(torch.zeros_like(images[:, :1, :1, :1]), images, factors)


def contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Scale towards or away from the mean luminance, rounded to a whole grey level."""
    pixels = images.shape[-2] * images.shape[-1]
    mean = (2 * grey(images).sum((1, 2, 3)) + pixels) // (2 * pixels)
    return _enhanced(mean[:, None, None, None], images, factors)


def saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Scale towards or away from the grey image; Pillow's Color. One channel stays as it is."""
    return _enhanced(grey(images), images, factors)


def sharpness(images: Tensor, factors: Tensor) -> Tensor:
    """Scale towards or away from the image smoothed by (1 1 1; 1 5 1; 1 1 1) / 13, whose rim is that of the image."""
    levels = images.to(torch.int32)
    smooth = levels.clone()
    if min(images.shape[-2:]) >= 3:
        rows = levels[..., :-2, :] + levels[..., 1:-1, :] + levels[..., 2:, :]
        box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
        # Sums of thirteenths are never halfway between two levels, so whole numbers round as Pillow's floats do.
        smooth[..., 1:-1, 1:-1] = (box + 4 * levels[..., 1:-1, 1:-1] + 6) // 13
    return _enhanced(smooth, images, factors)


def invert(images: Tensor) -> Tensor:
    """Return the negative, 255 - x."""
    return 255 - images


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the upper ``bits`` bits of each level, 1 to 8."""
    mask = 256 - 2 ** (8 - bits.to(torch.int32))
    return images & mask.to(torch.uint8)[:, None, None, None]


def solarize(images: Tensor, thresholds: Tensor) -> Tensor:
    """Invert the levels at or above the threshold."""
    return torch.where(images < thresholds[:, None, None, None], images, 255 - images)


def autocontrast(images: Tensor) -> Tensor:
    """Stretch each channel to [0, 255]; a channel of one level stays as it is."""
    low, high = (levels.double()[:, :, None] for levels in torch.aminmax(images.flatten(2), dim=2))  # (n, C, 1)
    # Not 255 / (...), which torch takes for 255 times a rounded reciprocal.
    scale = torch.full_like(low, 255).div((high - low).clamp_min(1))
    levels = torch.arange(256, dtype=torch.float64, device=images.device)
    table = (levels * scale - low * scale).trunc().clamp(0, 255)  # in Pillow's order: rounding decides some levels
    return _looked_up(images, torch.where(high > low, table, levels))


def equalize(images: Tensor) -> Tensor:
    """Spread the levels of each channel evenly, as Pillow does: in steps of whole pixels, the last level left out."""
    counts = torch.zeros((*images.shape[:2], 256), dtype=torch.int64, device=images.device)
    pixels = images.flatten(2).long()
    counts.scatter_add_(2, pixels, torch.ones_like(pixels))
    last = counts.gather(2, pixels.amax(2, keepdim=True))  # images in the brightest level that occurs
    step = (counts.sum(2, keepdim=True) - last) // 255
    below = counts.cumsum(2) - counts
    table = ((step // 2 + below) // step.clamp_min(1)).clamp_max(255)
    levels = torch.arange(256, device=images.device)
    return _looked_up(images, torch.where(step > 0, table, levels))


def require_eight_bits(images: Tensor, what: str) -> None:
    """Raise LandscapeError unless the images are uint8 with one or three channels."""
    if images.dtype != torch.uint8 or images.shape[1] not in (1, 3):
        raise LandscapeError(
            f"{what} works on uint8 images with 1 or 3 channels, got {images.dtype} with {images.shape[1]}: "
            "choose a transform of crops and flips"
        )


def _enhanced(degenerate: Tensor, images: Tensor, factors: Tensor) -> Tensor:
    """Return degenerate + factor (image - degenerate) in single precision, cut and truncated to uint8."""
    base = degenerate.float()
    weighed = factors.float()[:, None, None, None] * (images.float() - base)
    return (base + weighed).clamp(0, 255).to(torch.uint8)


def _looked_up(images: Tensor, table: Tensor) -> Tensor:
    """Return the levels that the tables (n, C, 256) give to the images' levels."""
    return table.to(torch.uint8).gather(2, images.flatten(2).long()).view_as(images)
