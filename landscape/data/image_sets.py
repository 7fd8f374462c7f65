"""The data sets whose images are files: published lists, lists of one's own, and folders of classes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from landscape.data.arrays import RESERVED_NAMES
from landscape.data.dataset import Split
from landscape.data.decoding import NETWORK_SIDE, Geometry
from landscape.data.disk_images import DiskImages, ImageFiles
from landscape.data.image_folder import read_image_folder
from landscape.data.image_lists import ImageList, names_from_folders, read_image_list
from landscape.data.profiles import held_out_share
from landscape.errors import LandscapeError

logger = logging.getLogger(__name__)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INATURALIST_MEAN, INATURALIST_STD = (0.466, 0.471, 0.380), (0.195, 0.194, 0.192)


@dataclass(frozen=True)
class Published:
    """A list that papers share.

    Attributes
    ----------
    num_classes
        Its labels are below it.
    train_names, test_names
        What its files are called; the first that is there is read.
    mean, std
        Of the released training code.
    """

    num_classes: int
    train_names: tuple[str, ...]
    test_names: tuple[str, ...]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


PUBLISHED: dict[str, Published] = {
    "imagenet-lt": Published(1000, ("ImageNet_LT_train.txt",), ("ImageNet_LT_test.txt",)),
    "places-lt": Published(365, ("Places_LT_train.txt",), ("Places_LT_test.txt",)),
    "inaturalist18": Published(
        8142,
        ("iNaturalist18_train.txt", "train2018.json"),
        ("iNaturalist18_val.txt", "val2018.json"),
        INATURALIST_MEAN,
        INATURALIST_STD,
    ),
}


@dataclass(frozen=True)
class ImagePlaces:
    """Where images and lists are, and at which side they are read.

    Attributes
    ----------
    data_dir
        The folder of the images.
    train_list, test_list
        Lists that take the place of the well-known ones in ``data_dir``.
    side
        Of the pixels, by default 224.
    cache_dir
        Folder for decoded images.
    allow_outside
        Whether lists may name images that are not below ``data_dir``.
    """

    data_dir: str | Path | None
    train_list: str | Path | None = None
    test_list: str | Path | None = None
    side: int | None = None
    cache_dir: str | Path | None = None
    allow_outside: bool = False

    @property
    def geometry(self) -> Geometry:
        """What evaluation sees of an image."""
        return Geometry.of_side(self.side or NETWORK_SIDE)

    def read_list(self, path: Path, root: Path, *, num_classes: int | None = None) -> ImageList:
        """Read a list of images below ``root``."""
        return read_image_list(path, root, num_classes=num_classes, allow_outside=self.allow_outside)

    def split(self, files: ImageFiles, labels: np.ndarray) -> Split:
        """Return files and labels (N,) as a split of lazy images."""
        images = DiskImages.of(files, self.geometry, cache_dir=self.cache_dir)
        return Split(images, torch.from_numpy(labels))


Splits = tuple[Split, Split, tuple[str, ...]]


def read_published_list(name: str, places: ImagePlaces) -> Splits:
    """Return training split, test split and class names of ImageNet-LT, Places-LT or iNaturalist 2018.

    The lists are looked for in ``data_dir`` under their published names unless they are given. Classes are called after
    their folders where each has one (``n01440764``, ``airfield``), else by their labels.

    Raises
    ------
    LandscapeError
        If there is no list, or it cannot be used (see :func:`read_image_list`).
    """
    published, root = PUBLISHED[name], _root(name, places)
    lists = [
        Path(given).expanduser() if given is not None else _well_known(name, root, names, option)
        for given, names, option in (
            (places.train_list, published.train_names, "train_list"),
            (places.test_list, published.test_names, "test_list"),
        )
    ]
    train, test = (places.read_list(path, root, num_classes=published.num_classes) for path in lists)
    return _assembled(places, train, test, published.num_classes)


def read_own_lists(places: ImagePlaces) -> Splits:
    """Return training split, test split and class names of lists of one's own.

    Without a test list a fifth of the smallest class is held out, of every class, as for ``arrays``.
    """
    root = _root("image-list", places)
    if places.train_list is None:
        raise LandscapeError("image-list needs train_list, a text file of lines 'relative/path label'")
    train = places.read_list(Path(places.train_list).expanduser(), root)
    num_classes = len(train.class_names) or int(train.labels.max()) + 1
    if places.test_list is not None:
        test = places.read_list(Path(places.test_list).expanduser(), root, num_classes=num_classes)
        return _assembled(places, train, test, num_classes)
    split, names = places.split(train.files, train.labels), _class_names(train, num_classes)
    return (*held_out_share(split, names, str(places.train_list), "a test_list"), names)


def read_class_folders(places: ImagePlaces) -> Splits:
    """Return training split, test split and class names of images in one folder per class.

    Without a folder of test images a fifth of the smallest class is held out, of every class.
    """
    root = _root("image-folder", places)
    splits, names = read_image_folder(root)
    reserved = sorted(RESERVED_NAMES & set(names))
    if reserved:
        raise LandscapeError(
            f"{root}: a class cannot be called '{reserved[0]}', which names a group: rename its folder"
        )
    train, *test = [places.split(files, labels) for files, labels in splits]
    if test:
        return train, test[0], names
    return (*held_out_share(train, names, str(root), "a folder 'test'"), names)


IMAGE_SETS: dict[str, Callable[[ImagePlaces], Splits]] = {
    "imagenet-lt": lambda places: read_published_list("imagenet-lt", places),
    "places-lt": lambda places: read_published_list("places-lt", places),
    "inaturalist18": lambda places: read_published_list("inaturalist18", places),
    "image-list": read_own_lists,
    "image-folder": read_class_folders,
}


def _root(name: str, places: ImagePlaces) -> Path:
    if places.data_dir is None:
        raise LandscapeError(f"{name} needs data_dir, the folder of the images")
    root = Path(places.data_dir).expanduser()
    if not root.is_dir():
        raise LandscapeError(f"data_dir {root} is not a folder: {name} reads the images below it")
    return root


def _well_known(name: str, root: Path, names: tuple[str, ...], option: str) -> Path:
    found = [root / entry for entry in names if (root / entry).is_file()]
    if not found:
        raise LandscapeError(f"{name}: no {' or '.join(names)} in data_dir {root}; name the list as {option}")
    return found[0]


def _assembled(places: ImagePlaces, train: ImageList, test: ImageList, num_classes: int) -> Splits:
    shared = set(train.files.names).intersection(test.files.names)
    if shared:
        logger.warning(
            "%s and %s share %d images, such as '%s': test accuracy is not that of unseen images",
            train.files.listed_in, test.files.listed_in, len(shared), min(shared),
        )  # fmt: skip
    names = _class_names(train, num_classes)
    return places.split(train.files, train.labels), places.split(test.files, test.labels), names


def _class_names(images: ImageList, num_classes: int) -> tuple[str, ...]:
    names = images.class_names or names_from_folders(images, num_classes)
    if names is None or len(names) != num_classes or RESERVED_NAMES & set(names):
        return tuple(map(str, range(num_classes)))
    return names
