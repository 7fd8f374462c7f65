"""Training batches from images that stay on the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from landscape.data.augmentation import TRANSFORMS, Transform, find_transform
from landscape.data.dataset import Dataset, normalise_pixels
from landscape.data.decoding import draw_crops
from landscape.data.disk_images import DiskImages
from landscape.data.dispatch import moved
from landscape.data.resizing import scaled_for_training
from landscape.data.sampling import SAMPLERS, Sampler
from landscape.errors import LandscapeError, unknown_name


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
        self._is_augmented = augment
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
        for (images,), labels in self.views(generator, epoch=epoch, num_epochs=num_epochs):
            yield images, labels

    def views(
        self,
        generator: torch.Generator,
        *,
        augmentations: Sequence[str | None] = (None,),
        order: Tensor | None = None,
        epoch: int = 0,
        num_epochs: int = 1,
    ) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        """Yield every batch of one epoch with several views of each image, augmented independently.

        Parameters
        ----------
        generator
            A CPU generator; equal states give equal epochs on every device.
        augmentations
            One name in ``TRANSFORMS`` per view; None: what :meth:`epoch` uses. Without augmentation all views are the
            images as stored.
        order
            Which examples make up the epoch, (M,) int64; by default the sampler's, drawn first.
        epoch, num_epochs
            As in :meth:`epoch`.
        """
        transforms = [self._find(name) for name in augmentations]
        if order is None:
            order = self._sampler.epoch_order(self._host_labels, self._num_classes, generator, epoch, num_epochs)
            num_batches = self.num_batches
        else:
            num_batches = -(-len(order) // self.batch_size)
        draws = [transform.draw(len(order), generator) for transform in transforms]
        parts = [slice(b * self.batch_size, (b + 1) * self.batch_size) for b in range(num_batches)]
        labels = self._labels[moved(order, self._labels.device)]
        for part, stored in zip(parts, self._stored(order, parts, len(transforms), generator)):
            views = (t.apply(images, d[:, part]) for t, d, images in zip(transforms, draws, stored))
            yield tuple(self._as_inputs(view) for view in views), labels[part]

    def _stored(
        self, order: Tensor, parts: list[slice], num_views: int, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, ...]]:
        """Return the uint8 images of each part of an order, once for every view, on the device."""
        if self._has_random_parts:
            crops = [draw_crops(len(order), generator) for _ in range(num_views)]
            return zip(*(self._streamed(order, parts, of_view) for of_view in crops))
        return ((images,) * num_views for images in self._streamed(order, parts))

    def _streamed(self, order: Tensor, parts: list[slice], crops: Tensor | None = None) -> Iterator[Tensor]:
        if isinstance(self._images, DiskImages):
            yield from self._images.stream((order[part], None if crops is None else crops[part]) for part in parts)
            return
        order = moved(order, self._images.device)
        for part in parts:
            yield self._images[order[part]]

    def _as_inputs(self, images: Tensor) -> Tensor:
        if self._resize is not None:
            images = scaled_for_training(images.to(self._mean.dtype), self._resize)
        return normalise_pixels(images, self._mean, self._std, self._pixel_max)

    def _find(self, name: str | None) -> Transform:
        if name is not None and name not in TRANSFORMS:
            raise unknown_name("augmentation", name, TRANSFORMS)
        if name is None or not self._is_augmented:
            return self._transform
        return TRANSFORMS[name].after_decoding() if self._has_random_parts else TRANSFORMS[name]
