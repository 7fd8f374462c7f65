"""The augmentation that training uses: its random draws, and images made of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from landscape.data.dataset import Dataset, Split
from landscape.errors import unknown_name


@dataclass(frozen=True)
class Transform:
    """Zero-pad by ``pad``, crop back at random, mirror every second image if ``has_flip``."""

    pad: int
    has_flip: bool

    def draw(self, num_images: int, generator: torch.Generator) -> Tensor:
        """Draw row offset, column offset and flip of each image: (3, N) int64 on the CPU."""
        draws = torch.zeros(3, num_images, dtype=torch.int64)
        if self.pad:
            draws[:2] = torch.randint(0, 2 * self.pad + 1, (2, num_images), generator=generator)
        if self.has_flip:
            draws[2] = torch.randint(0, 2, (num_images,), generator=generator)
        return draws

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """Return the images (N, C, H, W) that draws (3, N) make of ``images``, in their dtype and on their device."""
        return augmented(images, draws.to(images.device), self.pad)

    def redraw(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the images (N, C, H, W), each augmented anew."""
        return self.apply(images, self.draw(len(images), generator))


TRANSFORMS: dict[str, Transform] = {
    "none": Transform(pad=0, has_flip=False),
    "shift": Transform(pad=1, has_flip=False),
    "crop-flip": Transform(pad=4, has_flip=True),
}


def find_transform(dataset: Dataset) -> Transform:
    """Return what training does to the images of a data set; LandscapeError for a name that is not known."""
    if dataset.augmentation not in TRANSFORMS:
        raise unknown_name("augmentation", dataset.augmentation, TRANSFORMS)
    return TRANSFORMS[dataset.augmentation]


def augmented(images: Tensor, draws: Tensor, pad: int) -> Tensor:
    """Crop each zero-padded image at its own offset and mirror it where asked.

    Parameters
    ----------
    images
        (B, C, H, W), any dtype.
    draws
        (3, B) int64: row offset and column offset in the padded image, and 1 to mirror.
    pad
        Zeros added on each side; 0 with zero offsets and no flips returns the images.
    """
    if pad == 0:
        return images
    num_images, channels, height, width = images.shape
    device = images.device
    padded = functional.pad(images, (pad, pad, pad, pad))
    columns = torch.arange(width, device=device).expand(num_images, width)
    columns = torch.where(draws[2, :, None] == 1, width - 1 - columns, columns) + draws[1, :, None]  # (B, W)
    rows = torch.arange(height, device=device) + draws[0, :, None]  # (B, H)
    b = torch.arange(num_images, device=device)[:, None, None, None]
    c = torch.arange(channels, device=device)[None, :, None, None]
    return padded[b, c, rows[:, None, :, None], columns[:, None, None, :]]


def frozen_draws(split: Split, transform: Transform, draws: Tensor) -> Split:
    """Return every image of a split R times, each time with an augmentation of its own.

    Parameters
    ----------
    split
        N images.
    transform
        From :func:`find_transform`.
    draws
        (3, N, R) int64: those of :meth:`Transform.draw`, R for each image.

    Returns
    -------
    Split
        N R images; rows R i to R i + R - 1 are the draws of image i.

    Examples
    --------
    >>> split = Split(torch.ones(2, 1, 3, 3, dtype=torch.uint8), torch.tensor([0, 1]))
    >>> draws = TRANSFORMS["shift"].draw(6, torch.Generator().manual_seed(0)).view(3, 2, 3)
    >>> drawn = frozen_draws(split, TRANSFORMS["shift"], draws)
    >>> tuple(drawn.images.shape), drawn.labels.tolist()
    ((6, 1, 3, 3), [0, 0, 0, 1, 1, 1])
    """
    images, labels = (tensor.repeat_interleave(draws.shape[2], 0) for tensor in (split.pixels(), split.labels))
    return Split(transform.apply(images, draws.flatten(1)), labels)
