"""Training batches from images that stay on the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from landscape.data.dataset import Dataset, normalise_pixels
from landscape.errors import LandscapeError, unknown_name


@dataclass(frozen=True)
class Transform:
    """Zero-pad by ``pad``, crop back at random, mirror every second image if ``has_flip``."""

    pad: int
    has_flip: bool


TRANSFORMS: dict[str, Transform] = {
    "none": Transform(pad=0, has_flip=False),
    "shift": Transform(pad=1, has_flip=False),
    "crop-flip": Transform(pad=4, has_flip=True),
}


class Batches:
    """Shuffled batches of the training split; uint8 images resident on the device, augmented and normalised there.

    The permutation and every crop and flip of an epoch are drawn from one CPU generator before its first batch, so a
    CPU and a GPU see the same numbers and no batch waits for the host.

    Parameters
    ----------
    dataset
        Its ``train`` split is served, with its ``augmentation`` and normalisation.
    batch_size
        Images per batch.
    device
        Where the images live and the batches come out.
    augment
        Whether to augment; ``False`` serves the images as stored.
    drop_last
        Whether to leave out the last, smaller batch of an epoch.

    Attributes
    ----------
    num_batches
        Batches per epoch.

    Raises
    ------
    LandscapeError
        If ``batch_size`` is below 1, or no batch is left.

    Notes
    -----
    ``crop-flip`` pads with 4 black pixels (0 before normalisation), crops at random and mirrors with probability 1/2,
    as in the released CIFAR code; ``shift`` pads with 1 pixel and does not mirror.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        batch_size: int,
        device: str | torch.device,
        augment: bool,
        drop_last: bool = False,
    ) -> None:
        if batch_size < 1:
            raise LandscapeError(f"batch_size must be at least 1, got {batch_size}")
        if dataset.augmentation not in TRANSFORMS:
            raise unknown_name("augmentation", dataset.augmentation, TRANSFORMS)
        num_images = len(dataset.train)
        self.batch_size = batch_size
        self.num_batches = num_images // batch_size if drop_last else -(-num_images // batch_size)
        if self.num_batches == 0:
            raise LandscapeError(f"batch_size {batch_size} with drop_last leaves no batch of {num_images} images")
        self._transform = TRANSFORMS[dataset.augmentation if augment else "none"]
        self._images = dataset.train.images.to(device)
        self._labels = dataset.train.labels.to(device)
        self._mean = torch.tensor(dataset.mean, dtype=torch.float32, device=device)
        self._std = torch.tensor(dataset.std, dtype=torch.float32, device=device)
        self._pixel_max = dataset.pixel_max

    def epoch(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every batch of one epoch: images (B, C, H, W) normalised float32, labels (B,) int64.

        Parameters
        ----------
        generator
            A CPU generator; equal states give equal epochs on every device.
        """
        num_images, device = len(self._labels), self._images.device
        order = torch.randperm(num_images, generator=generator).to(device)
        draws = self._draw(num_images, generator).to(device)
        for b in range(self.num_batches):
            part = slice(b * self.batch_size, (b + 1) * self.batch_size)
            images = augmented(self._images[order[part]], draws[:, part], self._transform.pad)
            yield normalise_pixels(images, self._mean, self._std, self._pixel_max), self._labels[order[part]]

    def _draw(self, num_images: int, generator: torch.Generator) -> Tensor:
        """Draw row offset, column offset and flip of each image: (3, N) int64."""
        draws = torch.zeros(3, num_images, dtype=torch.int64)
        if self._transform.pad:
            draws[:2] = torch.randint(0, 2 * self._transform.pad + 1, (2, num_images), generator=generator)
        if self._transform.has_flip:
            draws[2] = torch.randint(0, 2, (num_images,), generator=generator)
        return draws


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
