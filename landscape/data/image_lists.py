"""Lists of images: text files with lines ``relative/path label``, and the JSON files of iNaturalist 2018."""

from __future__ import annotations

import codecs
import json
import os
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from landscape.data.disk_images import ImageFiles
from landscape.errors import LandscapeError
from landscape.files import first_line, kind_of, require_file, shown_path


@dataclass(frozen=True)
class ImageList:
    """The images that a list names, in its order.

    Attributes
    ----------
    files
        The images, all of them there.
    labels
        (N,) int64.
    class_names
        One per class where the list tells them (a JSON file may), else empty.
    """

    files: ImageFiles
    labels: NDArray[np.int64]
    class_names: tuple[str, ...] = ()


def read_image_list(
    path: Path, root: Path, *, num_classes: int | None = None, allow_outside: bool = False
) -> ImageList:
    """Read a list of images and make sure that it can be used.

    A line is a path below ``root``, white space, and a label from 0; the label is the last field, so a path may contain
    spaces. Taken are LF and CRLF line ends, UTF-8 with or without a byte order mark, empty lines, and names that the file
    system composes differently (an accent apart from its letter). A name that ends in ``.json`` is read as an annotation
    file of iNaturalist 2018 (``images``, ``annotations``, ``categories``).

    Parameters
    ----------
    path
        The list.
    root
        The folder of the images.
    num_classes
        Labels must be below it; by default below the number of images.
    allow_outside
        Whether images may lie elsewhere than below ``root``: through ``..``, an absolute path or a link.

    Raises
    ------
    LandscapeError
        Naming the line, if the list cannot be read, a line is not of that form, a label is out of range, an image is
        listed twice (it would count twice in its class), is not there, or is not below ``root``.
    """
    if path.is_dir():
        raise LandscapeError(f"{path} is a folder: expected a list, a text file of lines 'relative/path label'")
    try:
        if kind_of(path) != "nothing":
            require_file(path, "a list of images")
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # the latter of a zero byte in the name
        if isinstance(error, LandscapeError):
            raise
        reason = getattr(error, "strerror", None) or first_line(error)
        raise LandscapeError(f"cannot read the list {shown_path(path)} ({reason})") from error
    found = _annotations(path, root, content) if path.suffix == ".json" else _lines(path, root, content)
    if not len(found.files):
        raise LandscapeError(f"{path}: the list is empty, expected lines 'relative/path label'")
    _require_range(found, num_classes)
    _require_once(found.files)
    return ImageList(_existing(found.files, allow_outside), found.labels, found.class_names)


def names_from_folders(images: ImageList, num_classes: int) -> tuple[str, ...] | None:
    """Return the class names that the folders of the images are: None unless each class has one folder of its own."""
    folders: dict[int, str] = {}
    for name, label in zip(images.files.names, images.labels.tolist()):
        if folders.setdefault(label, os.path.dirname(name)) != os.path.dirname(name):
            return None
    if len(set(folders.values())) < num_classes:
        return None
    last = [os.path.basename(folders[c]) for c in range(num_classes)]
    if len(set(last)) == num_classes:
        return tuple(last)
    shared = os.path.commonpath(folders.values()) if num_classes > 1 else ""
    return tuple(os.path.relpath(folders[c], shared or ".") for c in range(num_classes))


def _lines(path: Path, root: Path, content: bytes) -> ImageList:
    names, labels, numbers = [], [], []
    for number, raw in enumerate(content.removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
        fields = raw.rsplit(None, 1)  # at ASCII white space only, which a carriage return is too
        if not fields:
            continue
        try:
            text = [field.decode() for field in fields]
        except UnicodeDecodeError:
            raise LandscapeError(f"{path}, line {number}: not UTF-8, save the list in that encoding") from None
        if len(text) != 2 or not (text[1].isascii() and text[1].isdigit()):
            raise LandscapeError(
                f"{path}, line {number}: expected 'relative/path label' with a whole number from 0 as the label, "
                f"got '{' '.join(text)[:200]}'"
            )
        names.append(text[0])
        # Python refuses to read numbers of thousands of digits.
        labels.append(int(text[1]) if len(text[1].lstrip("0")) < 19 else np.iinfo(np.int64).max)
        numbers.append(number)
    return ImageList(ImageFiles(root, tuple(names), path, np.array(numbers, np.int64)), np.array(labels, np.int64))


def _annotations(path: Path, root: Path, content: bytes) -> ImageList:
    """Read the format of iNaturalist 2018; images in the order of the file, class names with their category."""
    try:
        record = json.loads(content)
        category = {int(entry["image_id"]): int(entry["category_id"]) for entry in record["annotations"]}
        names = tuple(str(entry["file_name"]) for entry in record["images"])
        labels = np.array([category[int(entry["id"])] for entry in record["images"]], np.int64)
        listed = {int(entry["id"]): str(entry["name"]) for entry in record.get("categories", ())}
    except Exception as error:  # JSON can hold anything in the place of what is expected
        raise LandscapeError(
            f"{path}: expected an annotation file of iNaturalist 2018 with 'images' (id, file_name) and 'annotations' "
            f"(image_id, category_id), got {type(error).__name__}: {first_line(error)}"
        ) from error
    known = tuple(listed[c] for c in range(len(listed))) if set(listed) == set(range(len(listed))) else ()
    files = ImageFiles(root, names, path, np.arange(1, len(names) + 1), "image")
    return ImageList(files, labels, known if len(set(known)) == len(known) else ())


def _require_range(images: ImageList, num_classes: int | None) -> None:
    end = len(images.labels) if num_classes is None else num_classes
    bad = np.flatnonzero((images.labels >= end) | (images.labels < 0))
    if len(bad):
        scope = f"for {end} images" if num_classes is None else f"0..{end - 1}"
        raise LandscapeError(
            f"{images.files.place(int(bad[0]))} has label {images.labels[bad[0]]}, out of range {scope}"
            f"{f' (and {len(bad) - 1} more)' if len(bad) > 1 else ''}: labels count the classes from 0"
        )


def _require_once(files: ImageFiles) -> None:
    first: dict[str, int] = {}
    repeats = [row for row, name in enumerate(files.names) if first.setdefault(name, row) != row]
    if repeats:
        assert files.entries is not None
        earlier = files.entries[first[files.names[repeats[0]]]]
        raise LandscapeError(
            f"{files.place(repeats[0])} is also {files.unit} {earlier}, one of {len(repeats)} repeats: an image listed twice "
            "counts twice in its class, take the repeats out"
        )


def _existing(files: ImageFiles, allow_outside: bool) -> ImageFiles:
    """Return the files under the names that the folders have for them; each folder is listed once."""
    folders: dict[str, dict[str, str]] = {}
    names, missing = [], []
    root, outside = os.path.realpath(files.root), set()
    for row, name in enumerate(files.names):
        folder, base = os.path.split(name)
        if folder not in folders:
            folders[folder], links = _entries(os.path.join(files.root, folder))
            if not _is_below(os.path.join(files.root, folder), root):
                outside.add(folder)
            outside |= {
                os.path.join(folder, link)
                for link in links
                if not _is_below(os.path.join(files.root, folder, link), root)
            }
        found = folders[folder].get(base) or folders[folder].get(unicodedata.normalize("NFC", base))
        if found is None:
            missing.append(row)
        elif not allow_outside and (folder in outside or os.path.join(folder, found) in outside):
            raise LandscapeError(
                f"{files.place(row)} leads out of {files.root}: expected images below it; --allow-outside reads them all the same"
            )
        else:
            names.append(os.path.join(folder, found))
    if missing:
        raise LandscapeError(
            f"{files.place(missing[0])} is missing, one of {len(missing)} of {len(files)} listed images that are not below "
            f"{files.root}: name the folder that the list starts from as data_dir"
        )
    return ImageFiles(files.root, tuple(names), files.listed_in, files.entries, files.unit)


def _entries(folder: str) -> tuple[dict[str, str], list[str]]:
    """Return the names in a folder, as they are and composed, and which are links; empty if there is no such folder."""
    try:
        with os.scandir(folder or ".") as entries:
            found = [(entry.name, entry.is_symlink()) for entry in entries]
    except (OSError, ValueError):  # a name with a zero byte, or one that is no text
        return {}, []
    names = {unicodedata.normalize("NFC", name): name for name, _ in found} | {name: name for name, _ in found}
    return names, [name for name, is_link in found if is_link]


def _is_below(path: str, root: str) -> bool:
    """Return whether a path leads below a folder whose own links are resolved."""
    try:
        real = os.path.realpath(path)
    except (OSError, ValueError):
        return False
    return real == root or real.startswith(root.rstrip(os.sep) + os.sep)
