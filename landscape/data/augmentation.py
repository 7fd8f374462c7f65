"""The augmentation that training uses, by name: its random draws, and images made of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from landscape.data.dataset import Dataset, Split
from landscape.data.geometry import Crop, Cutout, Flip, RandomResizedCrop
from landscape.data.policies import AutoAugment, ColorJitter
from landscape.errors import LandscapeError, unknown_name


class Operation(Protocol):
    """One step of a transform; a frozen record."""

    @property
    def num_draws(self) -> int:
        """Rows of draws per image."""

    def draw(self, num_images: int, generator: torch.Generator) -> Tensor:
        """Return the draws, (num_draws, N) int64 on the CPU."""

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """Return the images (N, C, H, W) that CPU draws (num_draws, N) make, in their dtype and on their device."""


@dataclass(frozen=True)
class Transform:
    """Operations, one after the other.

    All randomness is in the draws, which are made on the CPU before any image is touched: an image and its draws give the
    same result in any batch and, bit for bit, on any device.

    Parameters
    ----------
    operations
        In the order in which they are done; none leaves the images as stored.

    Examples
    --------
    >>> transform = TRANSFORMS["crop-flip"]
    >>> draws = transform.draw(4, torch.Generator().manual_seed(0))
    >>> tuple(draws.shape), tuple(transform.apply(torch.ones(4, 3, 32, 32, dtype=torch.uint8), draws).shape)
    ((3, 4), (4, 3, 32, 32))
    """

    operations: tuple[Operation, ...] = ()

    @property
    def num_draws(self) -> int:
        """Rows of draws per image, K."""
        return sum(operation.num_draws for operation in self.operations)

    @property
    def needs_eight_bits(self) -> bool:
        """Whether it computes with levels, which then must range from 0 to 255."""
        return any(isinstance(operation, AutoAugment | ColorJitter) for operation in self.operations)

    def draw(self, num_images: int, generator: torch.Generator) -> Tensor:
        """Return the draws of all operations, (K, N) int64 on the CPU."""
        rows = [operation.draw(num_images, generator) for operation in self.operations]
        return torch.cat(rows) if rows else torch.zeros(0, num_images, dtype=torch.int64)

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """Return the images (N, C, H, W) that CPU draws (K, N) make of ``images``, in their dtype and on their device.

        Raises
        ------
        LandscapeError
            If an operation on colours gets other than 8-bit images with one or three channels.
        """
        start = 0
        for operation in self.operations:
            images = operation.apply(images, draws[start : start + operation.num_draws])
            start += operation.num_draws
        return images

    def redraw(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the images (N, C, H, W), each augmented anew."""
        return self.apply(images, self.draw(len(images), generator))

    def after_decoding(self) -> Transform:
        """Return what is left to do where part and side were chosen while the image was read from its file."""
        done = (RandomResizedCrop, Flip)
        return Transform(tuple(operation for operation in self.operations if not isinstance(operation, done)))


PARTS: dict[str, Operation] = {
    "shift": Crop(pad=1),
    "crop": Crop(pad=4),
    "random-resized-crop": RandomResizedCrop(),
    "flip": Flip(),
    "autoaugment": AutoAugment("cifar10"),
    "autoaugment-imagenet": AutoAugment("imagenet"),
    "cutout": Cutout(),
    "color-jitter": ColorJitter(),
}


def compose(*parts: str) -> Transform:
    """Return the transform of the named parts, in this order; LandscapeError for a name that is not in :data:`PARTS`.

    Examples
    --------
    >>> compose("crop", "flip") == TRANSFORMS["crop-flip"]
    True
    """
    for part in parts:
        if part not in PARTS:
            raise unknown_name("part of an augmentation", part, PARTS)
    return Transform(tuple(PARTS[part] for part in parts))


TRANSFORMS: dict[str, Transform] = {
    "none": compose(),
    "shift": compose("shift"),
    "flip": compose("flip"),
    "crop-flip": compose("crop", "flip"),
    "crop-flip-cutout": compose("crop", "flip", "cutout"),
    "crop-flip-autoaugment": compose("crop", "flip", "autoaugment"),
    "crop-flip-autoaugment-cutout": compose("crop", "flip", "autoaugment", "cutout"),
    "color-jitter": compose("color-jitter"),
    "flip-color-jitter": compose("flip", "color-jitter"),
    "random-resized-crop-flip": compose("random-resized-crop", "flip"),
    "random-resized-crop-flip-color-jitter": compose("random-resized-crop", "flip", "color-jitter"),
    "random-resized-crop-flip-autoaugment-imagenet": compose("random-resized-crop", "flip", "autoaugment-imagenet"),
}

# What published training does to the images of each data set; cRT's on iNaturalist, where MiSLAS jitters colours too.
PUBLISHED_TRANSFORMS: dict[str, str] = {
    "digits-lt": "none",
    "cifar10-lt": "crop-flip",
    "cifar100-lt": "crop-flip",
    "cifar10": "crop-flip",
    "cifar100": "crop-flip",
    "arrays": "none",
    "imagenet-lt": "random-resized-crop-flip-color-jitter",
    "places-lt": "random-resized-crop-flip-color-jitter",
    "inaturalist18": "random-resized-crop-flip",
}


def find_transform(dataset: Dataset, name: str | None = None) -> Transform:
    """Return a transform for the training images of a data set.

    Parameters
    ----------
    dataset
        The data set.
    name
        A key of :data:`TRANSFORMS`; by default the data set's own ``augmentation``.

    Raises
    ------
    LandscapeError
        For a name that is not known, or a transform of levels 0 to 255 for a data set with others.
    """
    chosen = dataset.augmentation if name is None else name
    if chosen not in TRANSFORMS:
        raise unknown_name("augmentation", chosen, TRANSFORMS)
    transform = TRANSFORMS[chosen]
    if transform.needs_eight_bits and dataset.pixel_max != 255:
        raise LandscapeError(
            f"augmentation '{chosen}' computes with levels 0 to 255, the white of {dataset.name} is {dataset.pixel_max}: "
            "choose one without autoaugment and color-jitter"
        )
    return transform


def frozen_draws(split: Split, transform: Transform, draws: Tensor) -> Split:
    """Return every image of a split R times, each time with an augmentation of its own.

    Parameters
    ----------
    split
        N images.
    transform
        From :func:`find_transform`.
    draws
        (K, N, R) int64: those of :meth:`Transform.draw`, R for each image.

    Returns
    -------
    Split
        N R images; rows R i to R i + R - 1 are the draws of image i.

    Examples
    --------
    >>> split = Split(torch.ones(2, 1, 3, 3, dtype=torch.uint8), torch.tensor([0, 1]))
    >>> shift = TRANSFORMS["shift"]
    >>> draws = shift.draw(6, torch.Generator().manual_seed(0)).view(shift.num_draws, 2, 3)
    >>> drawn = frozen_draws(split, shift, draws)
    >>> tuple(drawn.images.shape), drawn.labels.tolist()
    ((6, 1, 3, 3), [0, 0, 0, 1, 1, 1])
    """
    images, labels = (tensor.repeat_interleave(draws.shape[2], 0) for tensor in (split.pixels(), split.labels))
    return Split(transform.apply(images, draws.flatten(1)), labels)
