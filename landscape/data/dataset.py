"""The records of a data set: images as stored, labels, groups, and how to normalise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from landscape.errors import LandscapeError

Augmentation = Literal["none", "shift", "crop-flip"]


@dataclass(frozen=True, eq=False)
class Split:
    """Images as stored and their labels, in a fixed order.

    Attributes
    ----------
    images
        Pixels of shape (N, channels, height, width), uint8.
    labels
        Class indices of shape (N,), int64; sorted or not.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def counts(self, num_classes: int) -> tuple[int, ...]:
        """Return the number of examples of each of ``num_classes`` classes."""
        return tuple(torch.bincount(self.labels, minlength=num_classes).tolist())

    def take(self, indices: Sequence[int] | Tensor) -> Split:
        """Return the examples at ``indices``, in that order."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        return Split(self.images[index], self.labels[index])


@dataclass(frozen=True)
class Groups:
    """Which classes are head, medium and tail, and by which published rule.

    Attributes
    ----------
    rule
        The rule's name in :data:`landscape.data.GROUP_RULES`; recorded with every result, because the rules in
        use are incompatible.
    members
        ``"head"``, ``"medium"``, ``"tail"`` -> ascending class indices; a group may be empty.
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
        What training uses; see :class:`landscape.data.Batches`.
    groups
        Head, medium and tail classes.
    recipe
        JSON-able arguments: ``load_dataset(**dataset.recipe)`` rebuilds this data set.
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

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.class_names)

    @property
    def image_size(self) -> int:
        """Side of the images; LandscapeError unless they are square, as the networks expect."""
        height, width = self.train.images.shape[2:]
        if height != width:
            raise LandscapeError(
                f"images of {height} x {width} pixels: the networks expect square ones, crop or pad them"
            )
        return int(height)

    @property
    def train_counts(self) -> tuple[int, ...]:
        """Number of training examples of each class."""
        return self.train.counts(self.num_classes)

    def normalise(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        r"""Return :math:`(x / x_\text{max} - \mu) / \sigma` per channel, on the device of ``images``.

        Parameters
        ----------
        images
            Stored pixels, (..., channels, height, width), uint8.
        dtype
            The floating type of the result.
        """
        mean = torch.tensor(self.mean, dtype=dtype, device=images.device)
        std = torch.tensor(self.std, dtype=dtype, device=images.device)
        return normalise_pixels(images, mean, std, self.pixel_max)
