"""Operations that move pixels: crops, flips, holes, and Pillow's affine maps, for batches on any device.

An operation of a training transform is a frozen record with ``num_draws`` rows of whole numbers per image: ``draw`` makes
them on the CPU, before anything is computed, and ``apply`` makes images (N, C, H, W) of images and draws (num_draws, N).
Positions are drawn as fractions of 2^31, because the images' size is not known then.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from landscape.data.dispatch import apply_by_kind, moved

FRACTIONS = 2**31  # a position x of n is drawn as floor(n u / FRACTIONS); the bias is below n / FRACTIONS


@dataclass(frozen=True)
class Crop:
    """Zero-pad by ``pad`` on each side and crop back at random; draws: row offset, column offset."""

    pad: int
    num_draws = 2

    def draw(self, num_images: int, generator: torch.Generator) -> Tensor:
        """Return offsets from 0 to ``2 pad``, (2, N) int64."""
        return torch.randint(0, 2 * self.pad + 1, (2, num_images), generator=generator)

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """Return the crops, in the images' dtype."""
        channels, height, width = images.shape[1:]
        offsets = moved(draws, images.device)
        padded = functional.pad(images, (self.pad,) * 4)
        rows = offsets[0, :, None] + torch.arange(height, device=images.device)  # (N, H)
        columns = offsets[1, :, None] + torch.arange(width, device=images.device)
        # One flat gather: indexing by four tensors takes six times as long.
        places = (rows[:, :, None] * padded.shape[3] + columns[:, None, :]).flatten(1)
        return padded.flatten(2).gather(2, places[:, None].expand(-1, channels, -1)).view_as(images)


@dataclass(frozen=True)
class Flip:
    """Mirror left and right with probability 1/2; draws: 1 to mirror."""

    num_draws = 1

    def draw(self, num_images: int, generator: torch.Generator) -> Tensor:
        """Return zeros and ones, (1, N) int64."""
        return torch.randint(0, 2, (1, num_images), generator=generator)

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """Return the images, mirrored where asked."""
        return apply_by_kind(images, draws[0] - 1, _NO_PARAMETERS.expand(len(images), -1), (_mirror,))


@dataclass(frozen=True)
class Cutout:
    """Black out a square of side ``size`` whose centre is any pixel, clipped at the border; draws: row and column.

    The square covers rows ``y - size // 2`` to ``y + size // 2 - 1``, columns alike. Black is 0 before normalisation, as
    in GNM-PT, CC-SAM and BALMS (there after ``ToTensor``). Differs from the first release in: 1. there the hole is cut
    after normalisation, and so has the mean colour; ``level`` sets another.

    Source: DeVries and Taylor, *Improved Regularization of Convolutional Neural Networks with Cutout*, 2017.
    """

    size: int = 16
    level: int = 0
    num_draws = 2

    def draw(self, num_images: int, generator: torch.Generator) -> Tensor:
        """Return the centre as fractions of the height and the width, (2, N) int64 below ``FRACTIONS``."""
        return torch.randint(0, FRACTIONS, (2, num_images), generator=generator)

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """Return the images with their holes."""
        holes = []
        for axis, length in enumerate(images.shape[2:]):
            centre = moved(draws[axis] * length // FRACTIONS, images.device)[:, None]
            places = torch.arange(length, device=images.device)
            half = self.size // 2
            holes.append((places >= centre - half) & (places < centre + half))  # (N, length)
        return images.masked_fill((holes[0][:, :, None] & holes[1][:, None, :])[:, None], self.level)


@dataclass(frozen=True)
class RandomResizedCrop:
    r"""Crop a random part and enlarge it to the images' size, bilinear.

    The part has an area of :math:`U(\text{scale})` of the image and a ratio of width to height of
    :math:`\exp U(\log \text{ratio})`; ten attempts, then the largest central part of an allowed ratio. Draws: the area and
    ratio of each attempt, then the position.

    For images that are resident at their training size. Images that are streamed from disk are cropped at their full size,
    while they are decoded, which is what is published; here a part of the stored pixels is enlarged.

    Notes
    -----
    Source: Szegedy et al., *Going Deeper with Convolutions*, CVPR 2015, section 6, with the constants and the fallback of
    torchvision. Pixel for pixel Pillow's bilinear ``resize`` of the part: two passes, columns first, each rounded to
    8 bits.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    num_attempts: int = 10

    @property
    def num_draws(self) -> int:
        """Rows of draws: two per attempt and two."""
        return 2 * self.num_attempts + 2

    def draw(self, num_images: int, generator: torch.Generator) -> Tensor:
        """Return fractions, (num_draws, N) int64 below ``FRACTIONS``."""
        return torch.randint(0, FRACTIONS, (self.num_draws, num_images), generator=generator)

    def boxes(self, draws: Tensor, height: int, width: int) -> Tensor:
        """Return top, left, height and width of each part in whole pixels, (4, N) int64 on the CPU.

        Parameters
        ----------
        draws
            (num_draws, N), on the CPU.
        height, width
            Of the images, in pixels.
        """
        uniform = draws.double() / FRACTIONS
        area = height * width * (self.scale[0] + (self.scale[1] - self.scale[0]) * uniform[: self.num_attempts])
        low, high = (math.log(bound) for bound in self.ratio)
        ratio = torch.exp(low + (high - low) * uniform[self.num_attempts : -2])
        widths, heights = (torch.sqrt(area * ratio).round().long(), torch.sqrt(area / ratio).round().long())
        fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)  # (attempts, N)
        first = fits.to(torch.uint8).argmax(0, keepdim=True)
        chosen_width, chosen_height = widths.gather(0, first)[0], heights.gather(0, first)[0]
        top, left = (
            ((length - chosen + 1) * uniform[row]).long()
            for row, length, chosen in ((-2, height, chosen_height), (-1, width, chosen_width))
        )
        boxes = torch.stack([top, left, chosen_height, chosen_width])
        central = torch.tensor(_central_box(height, width, self.ratio))[:, None]
        return torch.where(fits.any(0), boxes, central)

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """Return the enlarged parts, in the images' dtype."""
        height, width = images.shape[2:]
        boxes = moved(self.boxes(draws, height, width), images.device)
        rows = _enlarge(images, boxes[1], boxes[3])
        return _enlarge(rows.transpose(2, 3), boxes[0], boxes[2]).transpose(2, 3)


_NO_PARAMETERS = torch.zeros(1, 1, dtype=torch.float64)


def _mirror(images: Tensor, _: Tensor) -> Tensor:
    return images.flip(3)


def affine(images: Tensor, coefficients: Tensor, fill: int) -> Tensor:
    r"""Return the images seen through affine maps, nearest pixel, in Pillow's 16.16 fixed point.

    Pixel (x, y) takes the level at :math:`\lfloor (a_0 x + a_1 y + a_2) / 2^{16} \rfloor,
    \lfloor (a_3 x + a_4 y + a_5) / 2^{16} \rfloor`, or ``fill`` where that lies outside.

    Parameters
    ----------
    images
        (n, C, H, W).
    coefficients
        (n, 6) whole numbers, of :func:`rotation` or :func:`translation`.
    fill
        Level outside.
    """
    channels, height, width = images.shape[1:]
    x = torch.arange(width, device=images.device)
    y = torch.arange(height, device=images.device)[:, None]
    a = coefficients.long()[:, :, None, None]
    columns = (a[:, 0] * x + a[:, 1] * y + a[:, 2]) >> 16  # (n, H, W)
    rows = (a[:, 3] * x + a[:, 4] * y + a[:, 5]) >> 16
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    places = torch.where(inside, rows * width + columns, 0).flatten(1)[:, None].expand(-1, channels, -1)
    taken = images.flatten(2).gather(2, places).view_as(images)
    return torch.where(inside[:, None], taken, fill)


def rotation(degrees: float, height: int, width: int) -> tuple[float, ...]:
    """Return the coefficients of :func:`affine` for a counter-clockwise rotation about the centre, as Pillow's."""
    angle = -math.radians(degrees % 360)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = width / 2, height / 2
    c, f = cos * -x + sin * -y + x, -sin * -x + cos * -y + y
    exact = (cos, sin, c + 0.5 * cos + 0.5 * sin, -sin, cos, f + 0.5 * -sin + 0.5 * cos)
    return tuple(float(math.floor(value * 65536 + 0.5)) for value in exact)


def translation(columns: float, rows: float) -> tuple[float, ...]:
    """Return the coefficients of :func:`affine` for taking each pixel from so many columns and rows further on."""
    shift_x, shift_y = (65536.0 * math.floor(shift + 0.5) for shift in (columns, rows))
    return (65536.0, 0.0, shift_x, 0.0, 65536.0, shift_y)


def shear(images: Tensor, slopes: Tensor, fill: int) -> Tensor:
    """Return the images sheared along their rows, bicubic (a = -1), in Pillow's double precision.

    Pixel (x, y), counted from the pixels' centres, takes the level at column ``x + slope y``, or ``fill`` outside. The
    other axis: transpose before and after.

    Parameters
    ----------
    images
        (n, C, H, W) uint8.
    slopes
        (n,) float64, columns per row.
    fill
        Level outside.
    """
    num_images, channels, height, width = images.shape
    centres_x = torch.arange(width, dtype=torch.float64, device=images.device) + 0.5
    centres_y = torch.arange(height, dtype=torch.float64, device=images.device)[:, None] + 0.5
    source = centres_x + slopes[:, None, None] * centres_y  # (n, H, W)
    inside = (source >= 0) & (source < width)
    left = (source - 0.5).floor()
    d = (source - 0.5 - left)[:, None]
    taps = []
    for offset in (-1, 0, 1, 2):
        columns = (left.long() + offset).clamp(0, width - 1)
        columns = columns[:, None].expand(num_images, channels, height, width)
        taps.append(images.gather(3, columns).double())
    v1, v2, v3, v4 = taps
    level = v2 + d * ((-v1 + v3) + d * ((2 * (v1 - v2) + v3 - v4) + d * (-v1 + v2 - v3 + v4)))
    return torch.where(inside[:, None], level.clamp(0, 255).to(torch.uint8), fill)


def _central_box(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    """Return top, left, height and width of the largest central part of an allowed ratio."""
    part_height, part_width = height, width
    if width < height * ratio[0]:
        part_height = round(width / ratio[0])
    elif width > height * ratio[1]:
        part_width = round(height * ratio[1])
    return (height - part_height) // 2, (width - part_width) // 2, part_height, part_width


def _enlarge(images: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
    """Stretch columns ``start`` to ``start + length`` of each image over its whole width, bilinear, as Pillow's resize.

    Only enlarges, so two columns at most meet in one; 8-bit images with weights in units of 2^-22.
    """
    num_images, channels, height, width = images.shape
    # By a tensor: a GPU divides by a number as it multiplies by the rounded reciprocal.
    scale = lengths.double().div(torch.full_like(lengths, width))[:, None]
    centre = (torch.arange(width, device=images.device) + 0.5) * scale  # (n, W)
    first = (centre - 0.5).trunc().long().clamp_min(0)
    last = torch.minimum((centre + 1.5).trunc().long(), lengths[:, None]) - 1
    weights = [(1 - (tap + 0.5 - centre).abs()).clamp_min(0) for tap in (first, last)]
    weights[1] = torch.where(last > first, weights[1], 0)
    total = weights[0] + weights[1]
    levels = []
    for tap, weight in zip((first, last), weights):
        columns = (tap + starts[:, None])[:, None, None].expand(num_images, channels, height, width)
        share = (weight / total)[:, None, None]
        if images.dtype == torch.uint8:
            share = (share * 2**22 + 0.5).to(torch.int32)
        levels.append(images.gather(3, columns) * share.to(torch.promote_types(images.dtype, share.dtype)))
    level = levels[0] + levels[1]
    return ((level + 2**21) >> 22).to(torch.uint8) if images.dtype == torch.uint8 else level.to(images.dtype)
