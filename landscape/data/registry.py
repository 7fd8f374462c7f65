"""The data sets by name, and the one function that builds them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from landscape.data.arrays import (
    DIGITS_MEAN,
    DIGITS_PIXEL_MAX,
    DIGITS_STD,
    pixel_statistics,
    read_arrays,
    read_digits,
)
from landscape.data.augmentation import PUBLISHED_TRANSFORMS
from landscape.data.cifar import CIFAR_MEAN, CIFAR_STD, read_cifar
from landscape.data.dataset import Augmentation, Dataset, Split
from landscape.data.download import fetch_cifar
from landscape.data.groups import assign_groups
from landscape.data.image_sets import IMAGE_SETS, IMAGENET_MEAN, IMAGENET_STD, PUBLISHED, ImagePlaces
from landscape.data.profiles import (
    Profile,
    Relabelling,
    Selection,
    long_tailed_counts,
    relabelled_by_count,
    select_examples,
)
from landscape.errors import LandscapeError, unknown_name

logger = logging.getLogger(__name__)
# A process says once of a data set what it could say at every loading.
warn_once = cache(logger.warning)


@dataclass(frozen=True)
class Request:
    """What :func:`load_dataset` was asked for."""

    name: str
    data_dir: str | Path | None
    imbalance_ratio: float | None
    profile: Profile
    selection: Selection
    group_rule: str
    mean: Sequence[float] | None
    std: Sequence[float] | None
    train_list: str | Path | None
    test_list: str | Path | None
    relabel: Relabelling | None
    resize: int | None
    cache_dir: str | Path | None
    download: bool
    allow_outside: bool

    def refuse(self, *names: str) -> None:
        """Raise LandscapeError if one of these arguments was given to a data set that has no use for it."""
        for name in names:
            if getattr(self, name):
                raise LandscapeError(f"{self.name} takes no {name}, got {getattr(self, name)}: leave it out")


@dataclass(frozen=True)
class Source:
    """Splits as read, before a long tail is cut out of the first; no mean: the training pixels' own."""

    train: Split
    test: Split
    class_names: tuple[str, ...]
    pixel_max: int
    augmentation: Augmentation
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    default_ratio: float | None = None  # None: the set is plain
    relabel: Relabelling = "none"
    has_random_parts: bool = False


def load_dataset(
    name: str,
    *,
    data_dir: str | Path | None = None,
    imbalance_ratio: float | None = None,
    profile: Profile = "exponential",
    selection: Selection = "seed0",
    group_rule: str = "auto",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    train_list: str | Path | None = None,
    test_list: str | Path | None = None,
    relabel: Relabelling | None = None,
    resize: int | None = None,
    cache_dir: str | Path | None = None,
    download: bool = False,
    allow_outside: bool = False,
) -> Dataset:
    """Load a data set: a (long-tailed) training split and a balanced test split.

    Parameters
    ----------
    name
        A key of :data:`DATASETS`: ``digits-lt`` (built in), ``cifar10-lt``, ``cifar100-lt``, ``cifar10``,
        ``cifar100`` (official files), ``arrays`` (an ``.npz`` file), ``imagenet-lt``, ``places-lt``, ``inaturalist18``
        (published lists of images), ``image-list`` (your own), ``image-folder`` (a folder of images for each class).
    data_dir
        The folder of the files or images, or the ``.npz`` file; none for the built-in digits.
    imbalance_ratio
        Largest over smallest training count, at least 1. By default 20 for the digits, 100 for ``cifar10-lt`` and
        ``cifar100-lt``, and none for the others, which then keep every example in file order.
    profile, selection
        The class counts, see :func:`long_tailed_counts`, and which examples, see
        :func:`landscape.data.profiles.select_examples`. The largest class of the profile has as many examples as
        the smallest class of the files, so that every class can serve.
    group_rule
        Head, medium and tail, see :func:`assign_groups`.
    mean, std
        Input normalisation, per channel of pixels scaled to [0, 1]; by default the published constants for CIFAR and
        the published lists, those of ImageNet for other images, those of the whole set for the digits, those of the
        training split for ``arrays``.
    train_list, test_list
        Lists of images below ``data_dir``, see :func:`landscape.data.image_lists.read_image_list`; by default the
        published lists are looked for in ``data_dir``.
    relabel
        ``"count"`` numbers the classes by falling training count, in the training and the test split
        (:func:`landscape.data.profiles.relabelled_by_count`), ``"none"`` leaves them. By default ``count`` for the
        published lists, as in the loaders that papers share, else ``none``.
    resize
        Side of the network's input. Images on disk are decoded at it, 224 by default: the short side to 8/7 of it and
        the centre of that, and for training a random part of the image, mirrored or not. Other images are scaled up on
        the device: directly in training, to 8/7 and the centre of that in evaluation.
    cache_dir
        Folder in which the decoded pixels of images on disk are kept for later runs. Without it they are kept in memory,
        if there is room.
    download
        Let torchvision download CIFAR into ``data_dir`` if it is not there.
    allow_outside
        Whether lists may name images that are not below ``data_dir``: through ``..``, an absolute path or a link.

    Raises
    ------
    LandscapeError
        For an unknown name or option, missing or damaged files, or a ratio the data cannot give.

    Examples
    --------
    >>> load_dataset("digits-lt").train_counts
    (134, 96, 68, 49, 35, 25, 18, 13, 9, 6)
    """
    if name not in DATASETS:
        raise unknown_name("data set", name, DATASETS)
    if relabel is not None and relabel not in get_args(Relabelling):
        raise unknown_name("relabelling", relabel, get_args(Relabelling))
    if resize is not None and (isinstance(resize, bool) or not isinstance(resize, int) or not 8 <= resize <= 4096):
        raise LandscapeError(f"resize is the side of the network's input in pixels, from 8 to 4096, got {resize!r}")
    request = Request(
        name, data_dir, imbalance_ratio, profile, selection, group_rule, mean, std,
        train_list, test_list, relabel, resize, cache_dir, download, allow_outside,
    )  # fmt: skip
    return _build(DATASETS[name](request), request)


def _digits_lt(request: Request) -> Source:
    if request.data_dir is not None:
        raise LandscapeError(f"digits-lt is built in and takes no data_dir, got {request.data_dir}: leave it out")
    request.refuse("train_list", "test_list", "cache_dir", "download")
    train, test, names = read_digits()
    return Source(train, test, names, DIGITS_PIXEL_MAX, "none", DIGITS_MEAN, DIGITS_STD, default_ratio=20)


def _cifar(request: Request, *, num_classes: int, default_ratio: float | None) -> Source:
    request.refuse("train_list", "test_list", "cache_dir")
    if request.download:
        fetch_cifar(num_classes, request.data_dir)
    train, test, names = read_cifar(num_classes, request.data_dir)
    return Source(train, test, names, 255, "crop-flip", CIFAR_MEAN, CIFAR_STD, default_ratio)


def _arrays(request: Request) -> Source:
    request.refuse("train_list", "test_list", "cache_dir", "download")
    train, test, names = read_arrays(request.data_dir)
    return Source(train, test, names, 255, "none", None, None)


def _images(request: Request) -> Source:
    request.refuse("download", *(("train_list", "test_list") if request.name == "image-folder" else ()))
    places = ImagePlaces(
        request.data_dir, request.train_list, request.test_list,
        side=request.resize, cache_dir=request.cache_dir, allow_outside=request.allow_outside,
    )  # fmt: skip
    train, test, names = IMAGE_SETS[request.name](places)
    published = PUBLISHED.get(request.name)
    mean, std = (published.mean, published.std) if published else (IMAGENET_MEAN, IMAGENET_STD)
    relabel: Relabelling = "count" if published else "none"
    transform = PUBLISHED_TRANSFORMS.get(request.name, "random-resized-crop-flip")
    return Source(train, test, names, 255, transform, mean, std, relabel=relabel, has_random_parts=True)


DATASETS: dict[str, Callable[[Request], Source]] = {
    "digits-lt": _digits_lt,
    "cifar10-lt": partial(_cifar, num_classes=10, default_ratio=100),
    "cifar100-lt": partial(_cifar, num_classes=100, default_ratio=100),
    "cifar10": partial(_cifar, num_classes=10, default_ratio=None),
    "cifar100": partial(_cifar, num_classes=100, default_ratio=None),
    "arrays": _arrays,
    **dict.fromkeys(IMAGE_SETS, _images),
}


def _build(source: Source, request: Request) -> Dataset:
    """Cut the long tail, number the classes, name the groups, settle the normalisation."""
    train, test, names = _cut(source, request), source.test, source.class_names
    relabel = request.relabel or source.relabel
    if relabel == "count":
        train, test, names = relabelled_by_count(train, test, names)
    groups = assign_groups(train.counts(len(names)), request.group_rule)
    if groups.rule == "none" and request.group_rule == "auto":
        warn_once(
            "the classes of '%s' are balanced: there is no head, medium or tail (--group-rule names them by a published rule)",
            request.name,
        )
    mean, std = _normalisation(source, request, train)
    side = _input_side(source, request)
    recipe: dict[str, Any] = {
        "name": request.name,
        "data_dir": _absolute(request.data_dir),
        "imbalance_ratio": _ratio(source, request),
        "profile": request.profile,
        "selection": request.selection,
        "group_rule": groups.rule,
        "mean": list(mean),
        "std": list(std),
        "train_list": _absolute(request.train_list),
        "test_list": _absolute(request.test_list),
        "relabel": relabel,
        "resize": side,
    }
    return Dataset(
        name=request.name,
        train=train,
        test=test,
        class_names=names,
        pixel_max=source.pixel_max,
        mean=mean,
        std=std,
        augmentation=source.augmentation,
        groups=groups,
        recipe=recipe,
        resize=side if isinstance(train.images, Tensor) else None,
        has_random_parts=source.has_random_parts,
    )


def _ratio(source: Source, request: Request) -> float:
    """Return the ratio of the tail that is cut; 1 for a plain set, which keeps its counts."""
    if request.imbalance_ratio is not None:
        return float(request.imbalance_ratio)
    if source.default_ratio is not None:
        return float(source.default_ratio)
    return 1.0


def _cut(source: Source, request: Request) -> Split:
    """Return the long-tailed training split; a plain set keeps every example in file order."""
    train, ratio = source.train, _ratio(source, request)
    num_classes = len(source.class_names)
    available = train.counts(num_classes)
    if min(available) == 0:
        raise LandscapeError(
            f"{request.name}: class {available.index(0)} ('{source.class_names[available.index(0)]}') has no training "
            "example in the files, every class needs one"
        )
    counts = long_tailed_counts(min(available), num_classes, ratio, request.profile)
    if ratio == 1 and source.default_ratio is None:
        select_examples(train.labels[:0].numpy(), (0,), request.selection)  # an unknown name is an error here too
        return train
    chosen = select_examples(train.labels.numpy(), counts, request.selection)
    return train.take(torch.from_numpy(chosen))


def _input_side(source: Source, request: Request) -> int | None:
    """Return the side of the network's input where images are brought to it, else None."""
    height, width = source.train.images.shape[2:]
    if not isinstance(source.train.images, Tensor):
        return int(height)
    if request.resize is None or request.resize == height == width:
        return None
    if height != width or request.resize < height:
        raise LandscapeError(
            f"resize scales square images up, got {request.resize} for images of {height} x {width}: leave it out"
        )
    return request.resize


def _absolute(path: str | Path | None) -> str | None:
    return None if path is None else str(Path(path).expanduser().absolute())


def _normalisation(source: Source, request: Request, train: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std: as asked for, else the source's own, else those of the training pixels."""
    mean, std = source.mean, source.std
    if mean is None or std is None:
        mean, std = pixel_statistics(train, source.pixel_max)
    mean = tuple(map(float, request.mean)) if request.mean is not None else mean
    std = tuple(map(float, request.std)) if request.std is not None else std
    channels = train.images.shape[1]
    for what, values in (("mean", mean), ("std", std)):
        if len(values) != channels or not all(map(math.isfinite, values)):
            raise LandscapeError(f"{what} needs {channels} finite numbers, one per channel, got {list(values)}")
    if min(std) <= 0:
        raise LandscapeError(f"std must be positive in every channel, got {list(std)}")
    return mean, std
