"""Training batches from images that stay on the device."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from landscape.data.augmentation import TRANSFORMS, find_transform
from landscape.data.dataset import Dataset, normalise_pixels
from landscape.data.decoding import draw_crops
from landscape.data.disk_images import DiskImages
from landscape.data.dispatch import moved
from landscape.data.resizing import scaled_for_training
from landscape.data.sampling import SAMPLERS, Sampler
from landscape.errors import LandscapeError


class Batches:
    """Shuffled batches of the training split; uint8 images resident on the device, augmented and normalised there.

    The order and every number of the augmentation of an epoch are drawn from one CPU generator before its first batch, so
    a CPU and a GPU see the same numbers and no batch waits for the host.

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
    transform
        A key of :data:`landscape.data.augmentation.TRANSFORMS` in place of the data set's own ``augmentation``.
    sampler
        Which images an epoch serves; by default each once. See :func:`landscape.data.sampling.build_sampler`.

    Attributes
    ----------
    num_batches
        Batches per epoch.
    num_images
        Images per epoch: those of the training split, or as many as the sampler serves.

    Raises
    ------
    LandscapeError
        If ``batch_size`` is below 1, or no batch is left.

    Notes
    -----
    ``crop-flip`` pads with 4 black pixels (0 before normalisation), crops at random and mirrors with probability 1/2,
    as in the released CIFAR code; ``shift`` pads with 1 pixel and does not mirror. With ``drop_last`` up to
    ``batch_size - 1`` images of an epoch are not served.

    Images on disk become resident if they fit (:meth:`landscape.data.DiskImages.held`). If they do not, or if training sees
    random parts of them, each batch is decoded while the ones before it are used; the order and the parts come from the
    same generator, so the batches are the same.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        batch_size: int,
        device: str | torch.device,
        augment: bool,
        drop_last: bool = False,
        transform: str | None = None,
        sampler: Sampler = SAMPLERS["uniform"],
    ) -> None:
        if batch_size < 1:
            raise LandscapeError(f"batch_size must be at least 1, got {batch_size}")
        chosen = find_transform(dataset, transform)
        self._transform = chosen if augment else TRANSFORMS["none"]
        self._sampler = sampler
        self._num_classes = dataset.num_classes
        self._host_labels = dataset.train.labels.cpu()
        self.num_images = sampler.epoch_length(self._host_labels, self._num_classes)
        self.batch_size = batch_size
        self.num_batches = self.num_images // batch_size if drop_last else -(-self.num_images // batch_size)
        if self.num_batches == 0:
            raise LandscapeError(f"batch_size {batch_size} with drop_last leaves no batch of {self.num_images} images")
        images = dataset.train.images
        self._has_random_parts = augment and dataset.has_random_parts and isinstance(images, DiskImages)
        if self._has_random_parts:
            self._transform = self._transform.after_decoding()
        is_lazy = isinstance(images, DiskImages) and not self._has_random_parts
        self._images = images.held(device) if is_lazy else images.to(device)  # type: ignore[union-attr]
        self._resize = dataset.resize
        self._labels = dataset.train.labels.to(device)
        self._mean = torch.tensor(dataset.mean, dtype=torch.float32, device=device)
        self._std = torch.tensor(dataset.std, dtype=torch.float32, device=device)
        self._pixel_max = dataset.pixel_max

    def epoch(
        self, generator: torch.Generator, *, epoch: int = 0, num_epochs: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every batch of one epoch: images (B, C, H, W) normalised float32, labels (B,) int64.

        Parameters
        ----------
        generator
            A CPU generator; equal states give equal epochs on every device.
        epoch, num_epochs
            Which epoch, counted from 0, of how many; only progressive sampling asks.
        """
        order = self._sampler.epoch_order(self._host_labels, self._num_classes, generator, epoch, num_epochs)
        draws = self._transform.draw(len(order), generator)
        crops = draw_crops(len(order), generator) if self._has_random_parts else None
        parts = [slice(b * self.batch_size, (b + 1) * self.batch_size) for b in range(self.num_batches)]
        labels = self._labels[moved(order, self._labels.device)]
        for part, stored in zip(parts, self._stored(order, crops, parts)):
            images = self._transform.apply(stored, draws[:, part])
            if self._resize is not None:
                images = scaled_for_training(images.to(self._mean.dtype), self._resize)
            yield normalise_pixels(images, self._mean, self._std, self._pixel_max), labels[part]

    def _stored(self, order: Tensor, crops: Tensor | None, parts: list[slice]) -> Iterator[Tensor]:
        """Yield the uint8 images of each part of an order, on the device."""
        if isinstance(self._images, DiskImages):
            yield from self._images.stream((order[part], None if crops is None else crops[part]) for part in parts)
            return
        order = moved(order, self._images.device)
        for part in parts:
            yield self._images[order[part]]
