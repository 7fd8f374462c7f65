"""Data that are missing, cut short, hostile or cannot give what is asked for: one line, and nothing written."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from cli_cases import Payload, refuses, succeeds

FOLDERS = {"bin": "cifar-10-batches-bin", "py": "cifar-10-batches-py"}
MLP = ("--model", "mlp", "--epochs", "1")


def on_cifar(command: str, foreign: Path, data: Path, folder: Path) -> list[object]:
    """Return the arguments of a command that reads CIFAR-10 from ``data``."""
    chosen: list[object] = ["--dataset", "cifar10", "--data-dir", data]
    if command in ("train", "run"):
        return [command, *chosen, "--model", "resnet20", "--epochs", "1", "--out", folder / "out"]
    return [command, foreign, *chosen, "--out", folder / ("out" if command == "figures" else "out.nc")]


@pytest.fixture(params=["bin", "py"])
def copied(request, cifar, tmp_path) -> Path:
    """A copy of one layout, to be damaged."""
    return shutil.copytree(cifar / FOLDERS[request.param], tmp_path / "data")


def file_of(folder: Path, name: str) -> Path:
    return next(path for path in (folder / name, folder / f"{name}.bin") if path.is_file())


@pytest.mark.parametrize("command", ["train", "run", "spectrum", "figures"])
def test_a_missing_folder(command, foreign, tmp_path):
    refuses(tmp_path, *on_cifar(command, foreign, tmp_path / "none", tmp_path), match="none is not a folder")


@pytest.mark.parametrize("command", ["train", "run", "spectrum", "figures"])
def test_no_folder(command, foreign, tmp_path):
    arguments = on_cifar(command, foreign, tmp_path, tmp_path)
    index = arguments.index("--data-dir")
    refuses(tmp_path, *arguments[:index], *arguments[index + 2 :], match="--data-dir|data_dir")


@pytest.mark.parametrize("command", ["train", "spectrum"])
def test_a_folder_of_something_else(command, foreign, tmp_path):
    refuses(
        tmp_path, *on_cifar(command, foreign, tmp_path, tmp_path), match=r"has no cifar-10-batches-bin/data_batch_1"
    )


@pytest.mark.parametrize("command", ["train", "figures"])
@pytest.mark.parametrize("name", ["data_batch_3", "test_batch"])
def test_a_missing_file(command, name, copied, foreign, tmp_path):
    file_of(copied, name).unlink()
    refuses(tmp_path, *on_cifar(command, foreign, copied, tmp_path), match=f"{name}.* is missing")


@pytest.mark.parametrize("command", ["train", "figures"])
def test_a_short_file(command, copied, foreign, tmp_path):
    path = file_of(copied, "data_batch_2")
    path.write_bytes(path.read_bytes()[:-100])
    refuses(tmp_path, *on_cifar(command, foreign, copied, tmp_path), match=r"data_batch_2.*truncated")


@pytest.mark.parametrize("command", ["train", "figures"])
def test_labels_out_of_range(command, copied, foreign, tmp_path):
    path = file_of(copied, "data_batch_2")
    if path.suffix:
        path.write_bytes(b"\x0a" + path.read_bytes()[1:])
    else:
        content = pickle.loads(path.read_bytes(), encoding="bytes")
        content[b"labels"][0] = 10
        path.write_bytes(pickle.dumps(content, protocol=2))
    refuses(
        tmp_path, *on_cifar(command, foreign, copied, tmp_path), match=r"data_batch_2.*label 10 is out of range 0\.\.9"
    )


@pytest.mark.parametrize("command", ["train", "run", "spectrum", "figures"])
def test_code_in_a_pickled_batch_is_not_executed(command, cifar, foreign, tmp_path):
    data, trace = shutil.copytree(cifar / FOLDERS["py"], tmp_path / "data"), tmp_path / "executed"
    content = pickle.dumps({b"labels": [0], b"data": Payload(trace)}, protocol=2)
    (data / "data_batch_4").write_bytes(content)
    pickle.loads(content)  # the payload is live
    assert trace.exists()
    trace.unlink()
    refuses(tmp_path, *on_cifar(command, foreign, data, tmp_path), match=r"data_batch_4.*refused.*system")
    assert not trace.exists()


# ---- the user's own arrays ----------------------------------------------------------------------------------------


def write_arrays(path: Path, *, test_classes: int = 3, shape: tuple[int, ...] = (8, 8)) -> Path:
    """Write 12 training images of 3 classes, and 2 test images of each of the first ``test_classes``."""
    rng = np.random.default_rng(0)
    labels, test_labels = np.arange(12) % 3, np.arange(2 * test_classes) % test_classes
    images = {
        "images": rng.integers(0, 256, (12, *shape), dtype=np.uint8),
        "test_images": rng.integers(0, 256, (len(test_labels), *shape), dtype=np.uint8),
    }
    np.savez(path, labels=labels, test_labels=test_labels, **images)
    return path


def train_on(data: Path, out: Path) -> Path:
    source = ("--dataset", "arrays", "--data-dir", data, "--group-rule", "ranks")  # the classes are balanced
    succeeds("train", *source, *MLP, "--batch-size", "4", "--out", out)
    return out / "checkpoint.safetensors"


@pytest.fixture(scope="module")
def lopsided(tmp_path_factory) -> Path:
    """A checkpoint on arrays whose test part has no example of the last class."""
    folder = tmp_path_factory.mktemp("lopsided")
    return train_on(write_arrays(folder / "data.npz", test_classes=2), folder / "run")


def test_own_arrays_go_all_the_way(tmp_path):
    path = train_on(write_arrays(tmp_path / "data.npz"), tmp_path / "run")
    assert "arrays" in succeeds("inspect", path)
    succeeds("spectrum", path, "--lanes", "2", "--out", tmp_path / "s.nc")


@pytest.mark.parametrize("command", ["spectrum", "perturb", "flatness", "surface", "figures"])
@pytest.mark.parametrize("lanes", ["2", "0,2", "classes", "tail"])
def test_a_class_without_examples_in_the_split(command, lanes, lopsided, tmp_path):
    out = tmp_path / ("out" if command == "figures" else "out.nc")
    arguments = (command, lopsided, "--split", "test", "--lanes", lanes, "--out", out)
    refuses(tmp_path, *arguments, match=r"lane '(2|tail)' has no examples in this split.*--lanes.*--split")


def test_the_other_lanes_of_that_split_and_the_other_split_can_be_analysed(lopsided, tmp_path):
    succeeds("spectrum", lopsided, "--split", "test", "--lanes", "0,1", "--out", tmp_path / "a.nc")
    succeeds("spectrum", lopsided, "--split", "train", "--lanes", "2", "--out", tmp_path / "b.nc")


def test_a_whole_analysis_of_the_training_split_goes_without_test_accuracy(lopsided, tmp_path, undrawn, caplog):
    """Where the test split lacks a class of it."""
    rows = json.loads(succeeds("figures", lopsided, "--lanes", "0,2", "--out", tmp_path, "--json"))
    assert [row["lane"] for row in rows] == ["0", "2"]
    assert "test_accuracy" not in rows[0]
    assert "test accuracy left out: lane '2' has no examples" in caplog.text
    assert undrawn == [tmp_path / "figures"]


def test_images_that_are_not_square(tmp_path):
    data = write_arrays(tmp_path / "data.npz", shape=(6, 8))
    arguments = ("--dataset", "arrays", "--data-dir", data, *MLP, "--out", tmp_path / "out")
    refuses(tmp_path, "train", *arguments, match=r"6.*8")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", r"data\.npz: not a readable \.npz"),
        (b"PK\x03\x04 and no more", r"data\.npz: not a readable \.npz"),
        (None, "is not a file"),
    ],
    ids=["empty", "damaged", "missing"],
)
def test_an_npz_that_cannot_be_read(content, match, tmp_path):
    if content is not None:
        (tmp_path / "data.npz").write_bytes(content)
    arguments = ("--dataset", "arrays", "--data-dir", tmp_path / "data.npz", *MLP, "--out", tmp_path / "out")
    refuses(tmp_path, "train", *arguments, match=match)


def test_objects_in_an_npz_are_not_executed(tmp_path):
    trace = tmp_path / "executed"
    np.savez(tmp_path / "data.npz", images=np.array([Payload(trace)], dtype=object), labels=np.zeros(1, np.int64))
    arguments = ("--dataset", "arrays", "--data-dir", tmp_path / "data.npz", *MLP, "--out", tmp_path / "out")
    refuses(tmp_path, "train", *arguments, match=r"not a readable \.npz file of plain arrays")
    assert not trace.exists()


# ---- ratios and normalisations ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "match"),
    [
        ("0.5", "at least 1, got 0.5: did you mean 2"),
        ("0", "at least 1, got 0"),
        ("-3", "at least 1, got -3"),
        ("nan", "imbalance.ratio.*nan"),
        ("inf", "imbalance.ratio.*inf"),
        ("1000", "leaves class 7 without examples.*at most 134"),
    ],
)
@pytest.mark.parametrize("command", ["train", "run", "spectrum", "figures"])
def test_an_impossible_imbalance_ratio(command, ratio, match, checkpoint, tmp_path):
    first = MLP if command in ("train", "run") else (checkpoint,)
    arguments = (command, *first, f"--imbalance-ratio={ratio}", "--out", tmp_path / "out")
    refuses(tmp_path, *arguments, match=match)


@pytest.mark.parametrize(
    ("option", "value", "match"),
    [
        ("--mean", "1,2", r"mean needs 1 finite numbers.*\[1\.0, 2\.0\]"),
        ("--mean", "nan", "--mean: expected comma-separated finite numbers.*'nan'"),
        ("--mean", "grey", "--mean: expected comma-separated finite numbers.*'grey'"),
        ("--std", "0", "std must be positive"),
        ("--std", "", "--std: expected comma-separated finite numbers"),
    ],
)
@pytest.mark.parametrize("command", ["train", "run", "inspect", "spectrum"])
def test_an_impossible_normalisation(command, option, value, match, checkpoint, tmp_path):
    first = MLP if command in ("train", "run") else (checkpoint,)
    out = [] if command == "inspect" else ["--out", tmp_path / "out"]
    refuses(tmp_path, command, *first, f"{option}={value}", *out, match=match)


def test_a_folder_for_the_built_in_digits(tmp_path):
    refuses(tmp_path, "train", *MLP, "--data-dir", tmp_path, "--out", tmp_path / "out", match="takes no data_dir")
