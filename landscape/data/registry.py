"""The data sets by name, and the one function that builds them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from landscape.data.arrays import (
    DIGITS_MEAN,
    DIGITS_PIXEL_MAX,
    DIGITS_STD,
    pixel_statistics,
    read_arrays,
    read_digits,
)
from landscape.data.cifar import CIFAR_MEAN, CIFAR_STD, read_cifar
from landscape.data.dataset import Augmentation, Dataset, Split
from landscape.data.groups import assign_groups
from landscape.data.profiles import Profile, Selection, long_tailed_counts, select_examples
from landscape.errors import LandscapeError, unknown_name


@dataclass(frozen=True)
class Request:
    """What :func:`load_dataset` was asked for."""

    data_dir: str | Path | None
    imbalance_ratio: float | None
    profile: Profile
    selection: Selection
    group_rule: str
    mean: Sequence[float] | None
    std: Sequence[float] | None


@dataclass(frozen=True)
class Source:
    """Splits as read, before a long tail is cut out of the first; no mean: the training pixels' own."""

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    pixel_max: int
    augmentation: Augmentation
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None


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
) -> Dataset:
    """Load a data set: a (long-tailed) training split and a balanced test split.

    Parameters
    ----------
    name
        A key of :data:`DATASETS`: ``digits-lt`` (built in), ``cifar10-lt``, ``cifar100-lt``, ``cifar10``,
        ``cifar100`` (official files), ``arrays`` (an ``.npz`` file).
    data_dir
        The folder of the files, or the ``.npz`` file; none for the built-in digits.
    imbalance_ratio
        Largest over smallest training count, at least 1. By default 20 for the digits, 100 for the ``-lt`` sets,
        and 1 for the others, which then keep every example in file order.
    profile, selection
        The class counts, see :func:`long_tailed_counts`, and which examples, see
        :func:`landscape.data.profiles.select_examples`. The largest class of the profile has as many examples as
        the smallest class of the files, so that every class can serve.
    group_rule
        Head, medium and tail, see :func:`assign_groups`.
    mean, std
        Input normalisation, per channel of pixels scaled to [0, 1]; by default the published constants for CIFAR,
        those of the whole set for the digits, those of the training split for ``arrays``.

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
    return DATASETS[name](Request(data_dir, imbalance_ratio, profile, selection, group_rule, mean, std))


def _digits_lt(request: Request) -> Dataset:
    if request.data_dir is not None:
        raise LandscapeError(f"digits-lt is built in and takes no data_dir, got {request.data_dir}: leave it out")
    train, test, names = read_digits()
    source = Source("digits-lt", train, test, names, DIGITS_PIXEL_MAX, "none", DIGITS_MEAN, DIGITS_STD)
    return _build(source, request, default_ratio=20)


def _cifar(name: str, num_classes: int, request: Request, *, default_ratio: float | None) -> Dataset:
    train, test, names = read_cifar(num_classes, request.data_dir)
    source = Source(name, train, test, names, 255, "crop-flip", CIFAR_MEAN, CIFAR_STD)
    return _build(source, request, default_ratio=default_ratio)


def _arrays(request: Request) -> Dataset:
    train, test, names = read_arrays(request.data_dir)
    source = Source("arrays", train, test, names, 255, "none", None, None)
    return _build(source, request, default_ratio=None)


DATASETS: dict[str, Callable[[Request], Dataset]] = {
    "digits-lt": _digits_lt,
    "cifar10-lt": lambda request: _cifar("cifar10-lt", 10, request, default_ratio=100),
    "cifar100-lt": lambda request: _cifar("cifar100-lt", 100, request, default_ratio=100),
    "cifar10": lambda request: _cifar("cifar10", 10, request, default_ratio=None),
    "cifar100": lambda request: _cifar("cifar100", 100, request, default_ratio=None),
    "arrays": _arrays,
}


def _build(source: Source, request: Request, *, default_ratio: float | None) -> Dataset:
    """Cut the long tail, name the groups, settle the normalisation; no default ratio: the set is plain."""
    ratio = request.imbalance_ratio
    if ratio is None:
        ratio = 1.0 if default_ratio is None else float(default_ratio)
    train = source.train
    num_classes = len(source.class_names)
    available = train.counts(num_classes)
    if min(available) == 0:
        raise LandscapeError(
            f"{source.name}: class {available.index(0)} ('{source.class_names[available.index(0)]}') has no training "
            "example in the files, every class needs one"
        )
    counts = long_tailed_counts(min(available), num_classes, ratio, request.profile)
    chosen = select_examples(train.labels.numpy(), counts, request.selection)
    if ratio != 1 or default_ratio is not None:
        train = train.take(torch.from_numpy(chosen))
    groups = assign_groups(train.counts(num_classes), request.group_rule)
    mean, std = _normalisation(source, request, train)
    recipe = {
        "name": source.name,
        "data_dir": None if request.data_dir is None else str(Path(request.data_dir).expanduser().absolute()),
        "imbalance_ratio": float(ratio),
        "profile": request.profile,
        "selection": request.selection,
        "group_rule": groups.rule,
        "mean": list(mean),
        "std": list(std),
    }
    return Dataset(
        name=source.name,
        train=train,
        test=source.test,
        class_names=source.class_names,
        pixel_max=source.pixel_max,
        mean=mean,
        std=std,
        augmentation=source.augmentation,
        groups=groups,
        recipe=recipe,
    )


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
