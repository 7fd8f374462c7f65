"""CIFAR archives, fetched by torchvision where it is installed."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path

from landscape.data.cifar import has_cifar
from landscape.errors import LandscapeError

logger = logging.getLogger(__name__)


def fetch_cifar(num_classes: int, data_dir: str | Path | None) -> None:
    """Let torchvision download and unpack CIFAR-10 or CIFAR-100 into a folder, unless an archive is unpacked there.

    Parameters
    ----------
    num_classes
        10 or 100.
    data_dir
        Made if it is not there; the archive is checked against torchvision's digest.

    Raises
    ------
    LandscapeError
        Without a folder, without torchvision, or if the download fails.
    """
    name = f"CIFAR{num_classes}"
    if data_dir is None:
        raise LandscapeError(f"download of {name} needs data_dir, the folder to download into")
    folder = Path(data_dir).expanduser()
    if has_cifar(num_classes, folder):
        logger.info("%s is already in %s", name, folder)
        return
    try:
        datasets = importlib.import_module("torchvision.datasets")
    except ImportError as error:
        raise LandscapeError(
            f"download of {name} needs torchvision, which cannot be imported ({error}): pip install torchvision, or unpack "
            f"the official archive in {folder}"
        ) from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        getattr(datasets, name)(root=str(folder), train=True, download=True)
    except (OSError, RuntimeError) as error:  # no network, a server's refusal, a digest that does not match
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LandscapeError(
            f"download of {name} into {folder} failed ({reason}): try again, or unpack the official archive there"
        ) from error
