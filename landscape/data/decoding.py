"""From an image file to pixels of one size: as evaluation sees it, or a random part of it as training does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.files import require_file

if TYPE_CHECKING:
    from PIL.Image import Image

NETWORK_SIDE = 224
# RandomResizedCrop of Szegedy et al. (2015) with the limits that every large-scale recipe of the field uses.
AREA_SHARE = (0.08, 1.0)
ASPECT_RATIO = (3 / 4, 4 / 3)
NUM_TRIES = 10
# Longer strips would take gigabytes when the short side is scaled to a few hundred pixels.
MAX_ASPECT = 500
# Uniform numbers per image: area and aspect ratio of each try, then row, column and mirroring.
DRAWS_PER_CROP = 2 * NUM_TRIES + 3


@dataclass(frozen=True)
class Geometry:
    """What evaluation sees of an image: its short side scaled to ``short_side``, the central ``side`` x ``side`` of that."""

    short_side: int
    side: int

    @classmethod
    def of_side(cls, side: int) -> Geometry:
        """Return the published geometry for a network of this input side: 256 and 224, or in these proportions.

        Examples
        --------
        >>> Geometry.of_side(224)
        Geometry(short_side=256, side=224)
        """
        return cls(side * 8 // 7, side)


def read_rgb(path: str) -> Image:
    """Decode an image file: grey, palette, CMYK and 16-bit images become 8-bit RGB as Pillow converts them.

    Orientation tags are ignored, as in torchvision's loader; whatever Pillow raises passes through. The size is read before
    the pixels: LandscapeError for an image whose pixels, or those after scaling, no photograph has.
    """
    from PIL import Image

    with require_file(path, "an image").open("rb") as file, Image.open(file) as image:
        _require_size(*image.size)
        if image.mode == "P":
            image.info.pop("transparency", None)  # RGB has none, and Pillow would warn that it is lost
        return image.convert("RGB")


def _require_size(width: int, height: int) -> None:
    """Raise LandscapeError for more pixels than Pillow deems safe, and for strips that scaling would make endless."""
    from PIL import Image

    most = Image.MAX_IMAGE_PIXELS or 89_478_485
    if width * height > most:
        raise LandscapeError(f"{width} x {height} pixels are more than {most}, its size was read and no pixel decoded")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise LandscapeError(f"{width} x {height} pixels are a strip, one side is over {MAX_ASPECT} times the other")


def evaluation_view(image: Image, geometry: Geometry) -> NDArray[np.uint8]:
    """Return the (3, side, side) pixels that evaluation sees.

    Short side to ``short_side`` (long side truncated to whole pixels), bilinear with Pillow's antialiasing, then the
    centre: torchvision's ``Resize`` and ``CenterCrop`` on Pillow images.
    """
    from PIL import Image

    short, side = geometry.short_side, geometry.side
    width, height = image.size
    size = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
    return _planes(image.crop((left, top, left + side, top + side)))


def draw_crops(num_images: int, generator: torch.Generator) -> Tensor:
    """Draw what :func:`training_view` needs of each image: (N, ``DRAWS_PER_CROP``) float32 uniform in [0, 1), on the CPU.

    They do not depend on the size of an image, so they are drawn before any image is read.
    """
    return torch.rand(num_images, DRAWS_PER_CROP, generator=generator)


def crop_box(width: int, height: int, draws: NDArray[np.float32]) -> tuple[int, int, int, int]:
    r"""Return left, top, right and bottom of a random part of an image.

    .. math:: a \sim U(0.08, 1) \cdot WH, \quad \log r \sim U(\log \tfrac34, \log \tfrac43), \quad
       w = \mathrm{round}\sqrt{a r}, \quad h = \mathrm{round}\sqrt{a / r}

    The first of ten tries that fits is placed at random; if none fits, the largest central part with the nearest aspect
    ratio is taken.

    Parameters
    ----------
    width, height
        Of the image, in pixels.
    draws
        (``DRAWS_PER_CROP``,), one row of :func:`draw_crops`.

    Notes
    -----
    Source: Szegedy et al., *Going Deeper with Convolutions*, CVPR 2015, as in torchvision's ``RandomResizedCrop``. Differs
    from it in: 1. the numbers of all ten tries are drawn, used or not, so that images do not depend on each other;
    2. a place is the whole part of a uniform number times the number of places.

    Examples
    --------
    >>> crop_box(100, 50, np.full(DRAWS_PER_CROP, 0.5, np.float32))  # 0.54 of the area, square: too high, ten times
    (16, 0, 83, 50)
    """
    values = draws.tolist()
    low, high = math.log(ASPECT_RATIO[0]), math.log(ASPECT_RATIO[1])
    for k in range(NUM_TRIES):
        area = width * height * (AREA_SHARE[0] + (AREA_SHARE[1] - AREA_SHARE[0]) * values[2 * k])
        ratio = math.exp(low + (high - low) * values[2 * k + 1])
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = int(values[2 * NUM_TRIES] * (height - h + 1))
            left = int(values[2 * NUM_TRIES + 1] * (width - w + 1))
            return left, top, left + w, top + h
    w, h = width, height
    if width / height < ASPECT_RATIO[0]:
        h = round(width / ASPECT_RATIO[0])
    elif width / height > ASPECT_RATIO[1]:
        w = round(height * ASPECT_RATIO[1])
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def training_view(image: Image, geometry: Geometry, draws: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return (3, side, side) pixels of a random part of the image, mirrored for half of the draws.

    The part is cut out first and scaled then (bilinear, antialiased), as torchvision does on Pillow images.
    """
    from PIL import Image

    part = image.crop(crop_box(*image.size, draws))
    scaled = part.resize((geometry.side, geometry.side), Image.Resampling.BILINEAR)
    if draws[-1] < 0.5:
        scaled = scaled.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return _planes(scaled)


def _planes(image: Image) -> NDArray[np.uint8]:
    """Return pixels as (3, height, width)."""
    return np.asarray(image).transpose(2, 0, 1)
