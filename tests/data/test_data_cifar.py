"""The official CIFAR layouts, written small: what is read, and what is refused."""

import os
import pickle

import numpy as np
import pytest
import torch

from landscape.data import load_dataset
from landscape.data.cifar import read_cifar
from landscape.errors import LandscapeError

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def parts(num_classes, per_class, seed):
    """Return shuffled labels (N,) and pixels (N, 3072)."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(num_classes), per_class)).astype(np.uint8)
    return labels, rng.integers(0, 256, (len(labels), 3072), dtype=np.uint8)


def write_cifar10(folder, layout, per_class=10, meta=True):
    """Write five training batches and a test batch; return the training labels and pixels in file order."""
    folder.mkdir(parents=True, exist_ok=True)
    labels, pixels = parts(10, per_class, seed=0)
    batches = {f"data_batch_{i + 1}": part for i, part in enumerate(np.array_split(np.arange(len(labels)), 5))}
    content = {name: (labels[part], pixels[part]) for name, part in batches.items()}
    content["test_batch"] = parts(10, 2, seed=1)
    for name, (y, x) in content.items():
        if layout == "bin":
            (folder / f"{name}.bin").write_bytes(np.concatenate([y[:, None], x], axis=1).tobytes())
        else:
            write_pickle(folder / name, {b"labels": y.tolist(), b"data": x, b"batch_label": name.encode()})
    if meta and layout == "bin":
        (folder / "batches.meta.txt").write_text("\n".join(NAMES[::-1]) + "\n\n")
    elif meta:
        write_pickle(folder / "batches.meta", {b"label_names": [n.encode() for n in NAMES[::-1]], b"num_vis": 3072})
    return labels, pixels


def write_pickle(path, content, protocol=2):
    path.write_bytes(pickle.dumps(content, protocol=protocol))


FOLDERS = {"bin": "cifar-10-batches-bin", "py": "cifar-10-batches-py"}


@pytest.mark.parametrize("inside", [True, False], ids=["folder", "parent"])
@pytest.mark.parametrize("layout", ["bin", "py"])
def test_cifar10_layouts_give_the_same_arrays(tmp_path, layout, inside):
    folder = tmp_path / FOLDERS[layout]
    labels, pixels = write_cifar10(folder, layout)
    data = load_dataset("cifar10", data_dir=folder if inside else tmp_path)
    assert data.train.images.shape == (100, 3, 32, 32)
    assert (data.train.images.dtype, data.train.labels.dtype) == (torch.uint8, torch.int64)
    assert (data.train.images.numpy().reshape(100, -1) == pixels).all()
    assert (data.train.labels.numpy() == labels).all()
    assert data.class_names == tuple(NAMES[::-1])
    assert (data.pixel_max, data.augmentation) == (255, "crop-flip")
    assert data.mean == (0.4914, 0.4822, 0.4465)
    assert data.std == (0.2023, 0.1994, 0.2010)
    assert len(data.test) == 20


def test_class_names_default_without_a_meta_file(tmp_path):
    write_cifar10(tmp_path, "bin", meta=False)
    assert read_cifar(10, tmp_path)[2] == tuple(NAMES)


def test_both_layouts_present_reads_the_binary_one(tmp_path):
    write_cifar10(tmp_path / FOLDERS["bin"], "bin")
    write_cifar10(tmp_path / FOLDERS["py"], "py", per_class=5)
    assert len(read_cifar(10, tmp_path)[0]) == 100


def test_a_reduced_archive_is_announced(tmp_path, caplog):
    write_cifar10(tmp_path, "bin")
    read_cifar(10, tmp_path)
    assert "100 training and 20 test images, the official archive has 50000 and 10000" in caplog.text


@pytest.mark.parametrize("layout", ["bin", "py"])
def test_cifar100_uses_the_fine_labels(tmp_path, layout):
    fine, pixels = parts(100, 2, seed=2)
    coarse = fine // 5
    names = [f"thing{c}" for c in range(100)]
    folder = tmp_path / ("cifar-100-binary" if layout == "bin" else "cifar-100-python")
    folder.mkdir()
    for name in ("train", "test"):
        if layout == "bin":
            records = np.concatenate([coarse[:, None], fine[:, None], pixels], axis=1)
            (folder / f"{name}.bin").write_bytes(records.tobytes())
            (folder / "fine_label_names.txt").write_text("\n".join(names))
        else:
            content = {"fine_labels": fine.tolist(), "coarse_labels": coarse.tolist(), "data": pixels}
            write_pickle(folder / name, content)
            write_pickle(folder / "meta", {"fine_label_names": names, "coarse_label_names": []})
    data = load_dataset("cifar100", data_dir=tmp_path)
    assert (data.train.labels.numpy() == fine).all()
    assert (data.train.images.numpy().reshape(200, -1) == pixels).all()
    assert data.class_names == tuple(names)
    assert data.groups.rule == "none"  # it is balanced
    assert load_dataset("cifar100", data_dir=tmp_path, group_rule="mislas-cifar100").groups.members["tail"]
    assert load_dataset("cifar100-lt", data_dir=tmp_path, imbalance_ratio=2).train_counts == (2,) + (1,) * 99


def test_long_tail_is_cut_in_the_drawn_order(tmp_path):
    labels, pixels = write_cifar10(tmp_path, "bin")
    data = load_dataset("cifar10-lt", data_dir=tmp_path, imbalance_ratio=10)
    assert data.train_counts == (10, 7, 5, 4, 3, 2, 2, 1, 1, 1)
    assert data.train.labels.tolist() == sorted(data.train.labels.tolist())
    rng = np.random.RandomState(0)
    indices = np.flatnonzero(labels == 0)
    rng.shuffle(indices)
    assert (data.train.images[:10].numpy().reshape(10, -1) == pixels[indices]).all()
    assert load_dataset("cifar10", data_dir=tmp_path, imbalance_ratio=10).train_counts == data.train_counts
    with pytest.raises(LandscapeError, match=r"imbalance_ratio 100 leaves class 5 without.*at most 10"):
        load_dataset("cifar10-lt", data_dir=tmp_path)


@pytest.mark.parametrize("layout", ["bin", "py"])
@pytest.mark.parametrize("missing", ["data_batch_3", "test_batch"])
def test_a_missing_file_is_named(tmp_path, layout, missing):
    write_cifar10(tmp_path, layout)
    name = f"{missing}.bin" if layout == "bin" else missing
    (tmp_path / name).unlink()
    with pytest.raises(LandscapeError, match=f"{name} is missing"):
        read_cifar(10, tmp_path)


def test_missing_folders_are_reported(tmp_path):
    with pytest.raises(LandscapeError, match=r"has no cifar-10-batches-bin/data_batch_1.bin or cifar-10-batches-py"):
        load_dataset("cifar10", data_dir=tmp_path)
    with pytest.raises(LandscapeError, match="nowhere is not a folder"):
        load_dataset("cifar100", data_dir=tmp_path / "nowhere")
    with pytest.raises(LandscapeError, match="cifar10 needs data_dir"):
        load_dataset("cifar10-lt")


@pytest.mark.parametrize("size", [0, 3072, 5 * 3073 - 1, 5 * 3073 + 7])
def test_truncated_binary_files_are_refused(tmp_path, size):
    write_cifar10(tmp_path, "bin")
    (tmp_path / "data_batch_2.bin").write_bytes(bytes(size))
    with pytest.raises(LandscapeError, match=rf"data_batch_2.bin: {size} bytes are not a whole number of 3073-byte"):
        read_cifar(10, tmp_path)


def test_labels_out_of_range_are_refused(tmp_path):
    write_cifar10(tmp_path, "bin")
    record = np.zeros(3073, np.uint8)
    record[0] = 10
    (tmp_path / "data_batch_4.bin").write_bytes(record.tobytes())
    with pytest.raises(LandscapeError, match=r"data_batch_4.bin: label 10 is out of range 0..9"):
        read_cifar(10, tmp_path)
    write_cifar10(tmp_path / "py", "py")
    write_pickle(tmp_path / "py" / "test_batch", {b"labels": [-1], b"data": np.zeros((1, 3072), np.uint8)})
    with pytest.raises(LandscapeError, match="label -1 is out of range"):
        read_cifar(10, tmp_path / "py")


def test_an_absent_class_is_refused(tmp_path):
    write_cifar10(tmp_path, "bin")
    for i in range(1, 6):
        (tmp_path / f"data_batch_{i}.bin").write_bytes(bytes(3073))
    with pytest.raises(LandscapeError, match=r"class 1 \('ship'\) has no training example"):
        load_dataset("cifar10", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({b"labels": [1]}, "expected an array 'data'"),
        ({b"labels": [1], b"data": np.zeros((1, 99), np.uint8)}, r"3072 pixels, got uint8 \(1, 99\)"),
        ({b"labels": [1], b"data": np.zeros((1, 3072))}, "got float64"),
        ({b"labels": [1, 2], b"data": np.zeros((1, 3072), np.uint8)}, "expected 1 whole-number labels, got 2"),
        ({b"labels": ["x"], b"data": np.zeros((1, 3072), np.uint8)}, "whole-number labels"),
        ([1, 2], "expected a pickled dictionary, got list"),
    ],
)
def test_pickles_of_another_shape_are_refused(tmp_path, content, message):
    write_cifar10(tmp_path, "py")
    write_pickle(tmp_path / "data_batch_1", content)
    with pytest.raises(LandscapeError, match=message):
        read_cifar(10, tmp_path)


class Attack:
    """Creates the file ``victim`` when it is unpickled by the standard unpickler."""

    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return os.mkdir, (str(self.victim),)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_that_runs_code_is_refused(tmp_path, protocol):
    write_cifar10(tmp_path, "py")
    path = tmp_path / "data_batch_1"
    write_pickle(path, {b"labels": [1], b"data": Attack(tmp_path / "victim")}, protocol)
    with pytest.raises(LandscapeError, match=r"data_batch_1: refused: the file asks for '(posix|nt)\.mkdir'"):
        read_cifar(10, tmp_path)
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize(
    "payload", [b"cbuiltins\neval\n(S'1'\ntR.", b"cnumpy\nload\n(S'x'\ntR.", b"c_codecs\nencode\n(Vx\nVbz2\ntR."]
)
def test_other_globals_are_refused(tmp_path, payload):
    write_cifar10(tmp_path, "py")
    (tmp_path / "data_batch_1").write_bytes(payload)
    with pytest.raises(LandscapeError, match=r"builtins.eval|numpy.load|bz2"):
        read_cifar(10, tmp_path)


def test_a_damaged_pickle_is_one_line(tmp_path):
    write_cifar10(tmp_path, "py")
    path = tmp_path / "data_batch_1"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(LandscapeError, match="data_batch_1: not a readable pickle, perhaps a truncated download"):
        read_cifar(10, tmp_path)


def test_a_bad_meta_file_is_refused(tmp_path):
    write_cifar10(tmp_path, "bin")
    (tmp_path / "batches.meta.txt").write_text("cat\ndog\n")
    with pytest.raises(LandscapeError, match="expected 10 different class names, got 2"):
        read_cifar(10, tmp_path)


def test_a_small_pickle_does_not_take_gigabytes(tmp_path):
    write_cifar10(tmp_path, "py")
    (tmp_path / "test_batch").write_bytes(b"\x80\x02}r" + (1 << 27).to_bytes(4, "little") + b".")
    with pytest.raises(LandscapeError, match="noted as number 134217728"):
        read_cifar(10, tmp_path)


def test_labels_beyond_any_integer_are_refused(tmp_path):
    write_cifar10(tmp_path, "py")
    content = pickle.loads((tmp_path / "test_batch").read_bytes(), encoding="bytes")
    write_pickle(tmp_path / "test_batch", {**content, b"labels": [10**30, *content[b"labels"][1:]]})
    with pytest.raises(LandscapeError, match="out of range"):
        read_cifar(10, tmp_path)
