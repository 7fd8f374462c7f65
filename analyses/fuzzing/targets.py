"""The kinds of files that are damaged: a whole one, how it is read, and what two readings have in common."""

from __future__ import annotations

import io
import json
import pickle
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn

from analyses.fuzzing import damage
from analyses.fuzzing.damage import Damage
from landscape.checkpoint import load_weights, read_checkpoint, write_checkpoint
from landscape.data import load_dataset
from landscape.data.cifar import read_cifar
from landscape.data.decoding import Geometry
from landscape.data.disk_images import DiskImages, ImageFiles
from landscape.data.image_lists import read_image_list
from landscape.exchange import read_goldstein
from landscape.loading import CheckpointSource, load_checkpoint, risk_of
from landscape.results import Journal, load_results, save_results
from landscape.risk import ModelRisk
from landscape.surface.axes import random_axes
from landscape.surface.recipes import axes_from_recipe, load_axes, save_axes
from landscape.training import TrainSpec, read_history, train
from landscape.training.folder import find_state
from landscape.training.loop import _restore
from landscape.training.setup import build_run


@dataclass(frozen=True)
class Target:
    """One kind of file.

    Attributes
    ----------
    make
        Writes a whole file into a folder, and what it needs beside it; returns the file.
    read
        What the product does with it; the value is compared.
    structured
        Damages that leave a valid file with other content, beside those of any bytes.
    is_checked
        Whether the file carries a checksum, so that bytes that changed must not pass as other numbers.
    share
        How many inputs of a hundred thousand; those that start processes are slow.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    structured: tuple[Damage, ...] = ()
    is_checked: bool = False
    share: int = 5000


def _network() -> nn.Module:
    network = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return network.eval()


def _save_torch(folder: Path, *, is_zip: bool) -> Path:
    content = {"state_dict": _network().state_dict(), "epoch": 3, "state_dict_ema": _network().state_dict()}
    torch.save(content, folder / "w.pt", _use_new_zipfile_serialization=is_zip)
    return folder / "w.pt"


def _read_weights(path: Path) -> dict[str, Any]:
    network = _network()
    load_weights(network, read_checkpoint(path))
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


@cache
def _trained(folder: Path) -> tuple[TrainSpec, Path]:
    spec = TrainSpec(dataset="digits-lt", model="mlp", epochs=1, batch_size=512)
    return spec, train(spec, folder / "run")


def _ours(folder: Path) -> Path:
    checkpoint = read_checkpoint(_trained(folder)[1])
    assert checkpoint.spec is not None
    return write_checkpoint(folder / "ours.safetensors", checkpoint.state_dict, checkpoint.spec)


def _read_ours(path: Path) -> dict[str, Any]:
    source = CheckpointSource(path, max_per_class=1, split="test")
    loaded = load_checkpoint(source)
    return {"theta": risk_of(loaded, source).theta.numpy()}


def _safetensors(folder: Path) -> Path:
    return write_checkpoint(folder / "w.safetensors", _network().state_dict(), {"model": "x"})


BLOCK = {"loss": np.arange(300.0), "verdict": np.array(["saddle", "slope"]), "steps": np.array(3)}


def _block(folder: Path) -> Path:
    Journal(folder, {"seed": 0}).store("lane=0", BLOCK)
    return Journal(folder, {"seed": 0}).path("lane=0")


def _read_block(path: Path) -> dict[str, Any]:
    journal = Journal(path.parent, {"seed": 0})
    path.rename(journal.path("lane=0"))
    return journal.block("lane=0", lambda: BLOCK)


def _pixels(num: int, side: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num, side, side, 3), dtype=np.uint8)


def _npz(folder: Path) -> Path:
    labels = np.repeat([0, 1, 2], 4)
    names = np.array(["a", "b", "c"])
    arrays = {"images": _pixels(12), "labels": labels, "test_images": _pixels(6), "test_labels": labels[::2]}
    np.savez(folder / "d.npz", **arrays, class_names=names)
    return folder / "d.npz"


def _splits(train_split: Any, test_split: Any, names: Any) -> dict[str, Any]:
    parts = {"train": train_split, "test": test_split}
    found = {f"{key} {what}": getattr(s, what).numpy() for key, s in parts.items() for what in ("images", "labels")}
    return {**found, "names": np.array(names)}


def _read_npz(path: Path) -> dict[str, Any]:
    data = load_dataset("arrays", data_dir=path)
    return _splits(data.train, data.test, data.class_names)


def _cifar(folder: Path, *, is_binary: bool) -> Path:
    pixels, labels = _pixels(10, 32).reshape(10, -1), list(range(10))
    for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"):
        if is_binary:
            rows = np.concatenate([np.array(labels, np.uint8)[:, None], pixels], 1)
            rows.tofile(folder / f"{name}.bin")
        else:
            content = {b"data": pixels, b"labels": labels, b"filenames": [b"x.png"] * 10}
            (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return folder / ("data_batch_1.bin" if is_binary else "data_batch_1")


def _read_cifar(path: Path) -> dict[str, Any]:
    return _splits(*read_cifar(10, path.parent))


def _record(folder: Path) -> Path:
    return _trained(folder)[1].parent / "run.json"


def _read_record(path: Path) -> Any:
    return find_state(path.parent, _trained(path.parent.parent)[0], resume=True)


def _state(folder: Path) -> Path:
    spec = _trained(folder)[0]
    out = folder / "unfinished"
    out.mkdir()
    run = build_run(spec, torch.device("cpu"), folder=out)
    run.history.append({"epoch": 1, "seconds": 1.0, "lr": 0.1})
    parts = ("model", "method", "optimizer", "resources", "companion")
    state = {name: getattr(run, name).state_dict() for name in parts}
    torch.save({"spec": json.dumps(spec.to_dict()), "history": run.history, **state}, out / "state.pt")
    return out / "state.pt"


def _read_state(path: Path) -> dict[str, Any]:
    spec = _trained(path.parent.parent)[0]
    state = find_state(path.parent, spec, resume=True)
    if state is None:
        return {}
    run = build_run(spec, torch.device("cpu"), folder=path.parent)
    _restore(run, state, path.parent)
    return {name: tensor.numpy() for name, tensor in run.model.state_dict().items()}


@cache
def _risk() -> ModelRisk:
    images = torch.randn(9, 6, generator=torch.Generator().manual_seed(1))
    return ModelRisk(_network(), (images, torch.arange(9) % 3))


def _axes(folder: Path) -> Path:
    return save_axes(random_axes(_risk(), seed=0, num=2), folder / "axes.safetensors", _risk().layout)


def _read_axes(path: Path) -> dict[str, Any]:
    return {str(k): v.numpy() for k, v in enumerate(load_axes(path, _risk()).vectors)}


def _recipe(folder: Path) -> Path:
    (folder / "recipe.json").write_text(json.dumps(random_axes(_risk(), seed=0, num=2).recipe))
    return folder / "recipe.json"


def _read_recipe(path: Path) -> dict[str, Any]:
    try:
        recipe = json.loads(path.read_bytes())
    except (ValueError, RecursionError):  # the caller's own text
        return {}
    return {str(k): v.numpy() for k, v in enumerate(axes_from_recipe(_risk(), recipe).vectors)}


def _results(folder: Path) -> Path:
    values = np.random.default_rng(0).normal(size=(1, 5, 5, 2))
    done = np.ones((1, 5, 5), bool)
    grid = {"pair": [0], "beta": np.linspace(-1, 1, 5), "alpha": np.linspace(-1, 1, 5), "lane": ["0", "all"]}
    dims = ("pair", "beta", "alpha", "lane")
    dataset = xr.Dataset({"loss": (dims, values), "done": (dims[:3], done)}, grid, {"dataset": "digits", "seed": 0})
    return save_results({"surface": dataset}, folder / "r.nc")


def _unsealed(folder: Path) -> Path:
    from landscape.hdf5 import _SEAL_BYTES

    path = _results(folder)
    path.write_bytes(path.read_bytes()[:-_SEAL_BYTES])
    return path


def _read_results(path: Path) -> dict[str, Any]:
    tree = load_results(path)
    return {f"{group}/{name}": v.values for group, node in tree.children.items() for name, v in node.variables.items()}


def _goldstein(folder: Path) -> Path:
    import h5py

    x = np.linspace(-1, 1, 5)
    with h5py.File(folder / "s.h5", "w") as file:
        file["dir_file"] = "d.h5"
        file["xcoordinates"], file["ycoordinates"] = x, x
        file["train_loss"], file["train_acc"] = np.ones((5, 5)), np.ones((5, 5))
    return folder / "s.h5"


def _read_goldstein(path: Path) -> dict[str, Any]:
    return {str(name): v.values for name, v in read_goldstein(path).variables.items()}


def _image(folder: Path, ending: str, mode: str = "RGB") -> Path:
    from PIL import Image

    Image.fromarray(_pixels(1, 40)[0]).convert(mode).save(folder / f"img.{ending}")
    return folder / f"img.{ending}"


def _read_image(path: Path) -> dict[str, Any]:
    images = DiskImages.of(ImageFiles(path.parent, (path.name,)), Geometry.of_side(32))
    return {"pixels": images.read(torch.tensor([0])).numpy()}


def _list(folder: Path) -> Path:
    for k in range(8):
        (folder / f"img {k}.png").touch()
    (folder / "list.txt").write_text("".join(f"img {k}.png {k % 2}\n" for k in range(8)))
    return folder / "list.txt"


def _annotations(folder: Path) -> Path:
    _list(folder)
    record = {
        "images": [{"id": k, "file_name": f"img {k}.png"} for k in range(8)],
        "annotations": [{"image_id": k, "category_id": k % 2} for k in range(8)],
        "categories": [{"id": k, "name": f"kind {k}"} for k in range(2)],
    }
    (folder / "list.json").write_text(json.dumps(record))
    return folder / "list.json"


def _read_list(path: Path) -> dict[str, Any]:
    found = read_image_list(path, path.parent)
    return {"labels": found.labels, "names": np.array(found.files.names)}


def _history(folder: Path) -> Path:
    return _trained(folder)[1].parent / "history.csv"


def _odd_pickles(content: bytes, draw: random.Random) -> bytes:
    """Pickle a valid dictionary with odd values in the place of those expected."""
    found = pickle.load(io.BytesIO(content), encoding="bytes")  # our own bytes
    key = draw.choice(list(found))
    if draw.random() < 0.5 and isinstance(found[key], list):
        found[key][draw.randrange(len(found[key]))] = draw.choice(damage.ODD_VALUES)
    else:
        found[key] = draw.choice((*damage.ODD_VALUES, np.zeros((10, 4)), np.zeros(0), found[b"data"][:3]))
    return pickle.dumps(found, protocol=draw.choice((0, 2, 4)))


TARGETS: dict[str, Target] = {
    "torch zip": Target(
        lambda folder: _save_torch(folder, is_zip=True), _read_weights, (damage.edit_zip,), is_checked=True, share=14000
    ),
    "torch legacy": Target(lambda folder: _save_torch(folder, is_zip=False), _read_weights, share=14000),
    "safetensors": Target(_safetensors, _read_weights, (damage.edit_safetensors,), share=14000),
    "our checkpoint": Target(_ours, _read_ours, (damage.edit_safetensors,) * 4, share=6000),
    "journal block": Target(_block, _read_block, (damage.edit_zip,), is_checked=True, share=14000),
    "npz": Target(_npz, _read_npz, (damage.edit_zip,), is_checked=True, share=8000),
    "CIFAR binary": Target(lambda folder: _cifar(folder, is_binary=True), _read_cifar, share=4000),
    "CIFAR pickle": Target(lambda folder: _cifar(folder, is_binary=False), _read_cifar, (_odd_pickles,), share=8000),
    "run.json": Target(_record, _read_record, (damage.edit_json,) * 4),
    "state.pt": Target(_state, _read_state, (damage.edit_zip,), is_checked=True, share=3000),
    "axes": Target(_axes, _read_axes, (damage.edit_safetensors,) * 4, share=7000),
    "recipe of axes": Target(_recipe, _read_recipe, (damage.edit_json,) * 6),
    "results": Target(_results, _read_results, is_checked=True, share=4000),
    "results, unsealed": Target(_unsealed, _read_results, share=600),
    "surface .h5": Target(_goldstein, _read_goldstein, share=1200),
    "image list": Target(_list, _read_list, (damage.edit_lines,) * 6),
    "annotations": Target(_annotations, _read_list, (damage.edit_json,) * 6, share=4000),
    "PNG image": Target(lambda folder: _image(folder, "png"), _read_image, share=4000),
    "JPEG image": Target(lambda folder: _image(folder, "jpg"), _read_image, share=4000),
    "TIFF image": Target(lambda folder: _image(folder, "tif"), _read_image, share=2000),
    "history": Target(_history, lambda path: {"epoch": read_history(path.parent)["epoch"].to_numpy()}, share=1000),
}
