"""The records of a data set: images as stored, labels, groups, and how to normalise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from landscape.data.disk_images import DiskImages
from landscape.data.resizing import scaled_for_evaluation
from landscape.errors import LandscapeError

Augmentation = str  # a key of landscape.data.augmentation.TRANSFORMS


@dataclass(frozen=True, eq=False)
class Split:
    """Images as stored and their labels, in a fixed order.

    Attributes
    ----------
    images
        Pixels of shape (N, channels, height, width), uint8: a tensor, or images on disk that are decoded when rows are
        read.
    labels
        Class indices of shape (N,), int64; sorted or not.
    """

    images: Tensor | DiskImages
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def counts(self, num_classes: int) -> tuple[int, ...]:
        """Return the number of examples of each of ``num_classes`` classes."""
        return tuple(torch.bincount(self.labels, minlength=num_classes).tolist())

    def take(self, indices: Sequence[int] | Tensor) -> Split:
        """Return the examples at ``indices``, in that order."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        images = self.images.take(index) if isinstance(self.images, DiskImages) else self.images[index]
        return Split(images, self.labels[index])

    @property
    def is_resident(self) -> bool:
        """Whether the images are in memory, or will be once they were read."""
        return not isinstance(self.images, DiskImages) or self.images.resident_bytes > 0

    def pixels(self) -> Tensor:
        """Return all images as one tensor."""
        return self.images.resident() if isinstance(self.images, DiskImages) else self.images

    def random_parts(self, crops: Tensor) -> Split:
        """Return R random parts of every image in memory, one after the other, for draws (N, R, ``DRAWS_PER_CROP``).

        Raises
        ------
        LandscapeError
            If the images are not on disk, where the whole ones are.
        """
        if not isinstance(self.images, DiskImages):
            raise LandscapeError(
                "random parts are cut out of images on disk, these are stored at the size of the input"
            )
        rows = torch.arange(len(self)).repeat_interleave(crops.shape[1])
        return Split(self.images.read(rows, crops.flatten(0, 1)), self.labels[rows])

    def in_order(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all images and labels, ``batch_size`` at a time; images on disk are decoded ahead."""
        labels = self.labels.split(batch_size)
        if isinstance(self.images, DiskImages):
            wanted = ((rows, None) for rows in torch.arange(len(self)).split(batch_size))
            yield from zip(self.images.stream(wanted), labels)
        else:
            yield from zip(self.images.split(batch_size), labels)


@dataclass(frozen=True)
class Groups:
    """Which classes are head, medium and tail, and by which published rule.

    Attributes
    ----------
    rule
        The rule's name in :data:`landscape.data.GROUP_RULES`; recorded with every result, because the rules in
        use are incompatible.
    members
        ``"head"``, ``"medium"``, ``"tail"`` -> ascending class indices; a group may be empty. Nothing for balanced classes.
    """

    rule: str
    members: dict[str, tuple[int, ...]]


def normalise_pixels(images: Tensor, mean: Tensor, std: Tensor, pixel_max: int) -> Tensor:
    """Return ``(images / pixel_max - mean) / std`` in the dtype of ``mean``; per channel, on the images' device."""
    pixels = images.to(mean.dtype) / pixel_max  # (..., channels, height, width)
    return (pixels - mean[:, None, None]) / std[:, None, None]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training split, a balanced test split, and everything needed to use and to rebuild them.

    Attributes
    ----------
    name
        Key in :data:`landscape.data.DATASETS`.
    train, test
        The two splits.
    class_names
        One unique name per class.
    pixel_max
        The stored value of a white pixel: 255, or 16 for the digits.
    mean, std
        Per channel, of pixels scaled to [0, 1].
    augmentation
        What training does to the images, a key of :data:`landscape.data.augmentation.TRANSFORMS`.
    groups
        Head, medium and tail classes.
    recipe
        JSON-able arguments: ``load_dataset(**dataset.recipe)`` rebuilds this data set.
    resize
        Side to which stored images are scaled up for the network, None where it takes them as they are.
    has_random_parts
        Whether training sees random parts of the images, cut out while they are decoded.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    pixel_max: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation
    groups: Groups
    recipe: dict[str, Any]
    resize: int | None = None
    has_random_parts: bool = False

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.class_names)

    @property
    def image_size(self) -> int:
        """Side of the network's input; LandscapeError unless images are square, as the networks expect."""
        height, width = self.train.images.shape[2:]
        if height != width:
            raise LandscapeError(
                f"images of {height} x {width} pixels: the networks expect square ones, crop or pad them"
            )
        return self.resize or int(height)

    @property
    def train_counts(self) -> tuple[int, ...]:
        """Number of training examples of each class."""
        return self.train.counts(self.num_classes)

    def normalise(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        r"""Return :math:`(x / x_\text{max} - \mu) / \sigma` per channel, on the device of ``images``.

        With ``resize`` the images are scaled up first, as evaluation does it
        (:func:`landscape.data.resizing.scaled_for_evaluation`).

        Parameters
        ----------
        images
            Stored pixels, (..., channels, height, width), uint8.
        dtype
            The floating type of the result.
        """
        mean = torch.tensor(self.mean, dtype=dtype, device=images.device)
        std = torch.tensor(self.std, dtype=dtype, device=images.device)
        if self.resize is not None:
            images = scaled_for_evaluation(images.to(dtype), self.resize, rounds=self.pixel_max == 255)
        return normalise_pixels(images, mean, std, self.pixel_max)
