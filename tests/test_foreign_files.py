"""Checkpoints of others: whole files of another kind are named, averages are found, hostile content takes nothing."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
import time
import zipfile

import h5py
import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from landscape.checkpoint import load_weights, read_checkpoint
from landscape.errors import LandscapeError

STATE = {"conv.weight": torch.ones(2, 3), "bn.running_mean": torch.zeros(2), "bn.num_batches_tracked": torch.tensor(7)}
OTHER = {name: tensor + 1 for name, tensor in STATE.items()}


def saved(path, content, **options):
    torch.save(content, path, **options)
    return path


# ---- whole files of another kind -------------------------------------------------------------------------------------


def script(path):
    class Twice(nn.Module):
        def forward(self, x):
            return x + x

    torch.jit.save(torch.jit.script(Twice()), path)


def checkpoint_bytes():
    stream = io.BytesIO()
    torch.save(STATE, stream)
    return stream.getvalue()


def written(save, **arrays):
    stream = io.BytesIO()
    save(stream, **arrays)
    return stream.getvalue()


def tar(path):
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("model.pt")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))


def zipped_folder(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("run/model.pt", checkpoint_bytes())


def keras(path):
    with h5py.File(path, "w") as file:
        file["layer/kernel"] = np.ones(3)


INDEX = {
    "metadata": {},
    "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"},
}
KINDS = {
    "TorchScript archive": script,
    "index of a sharded checkpoint \\(2 shards": lambda path: path.write_text(json.dumps(INDEX)),
    "JSON file": lambda path: path.write_text('{"abcd":{"x": 1}}'),
    "git-lfs": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
    "web page": lambda path: path.write_text("\n<!DOCTYPE html><html>log in</html>"),
    "gzip": lambda path: path.write_bytes(gzip.compress(checkpoint_bytes())),
    "tar archive": tar,
    "zip archive that torch did not write": zipped_folder,
    "npz archive": lambda path: path.write_bytes(written(np.savez, images=np.ones(3))),
    "NumPy array": lambda path: path.write_bytes(written(np.save, arr=np.ones(3))),
    "HDF5 file": keras,
    "ONNX": lambda path: path.write_bytes(b"\x08\x08\x12\x07pytorch\x1a\x052.1.0:\xff\x01"),
    "empty file": lambda path: path.write_bytes(b""),
    "text file that begins with 'epoch 1, loss 2.3'": lambda path: path.write_text("epoch 1, loss 2.3"),
    "pickle without tensors": lambda path: path.write_bytes(pickle.dumps({"w": [1.0, 2.0]}, protocol=2)),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # whichever category this version of torch gives it
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_a_whole_file_of_another_kind_is_called_by_its_name(tmp_path, kind, name):
    KINDS[kind](tmp_path / name)
    with pytest.raises(LandscapeError, match=rf"is not a checkpoint: .*{kind}") as caught:
        read_checkpoint(tmp_path / name)
    assert "damaged" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "pytorch_model-00001-of-00002.bin"])
def test_a_shard_is_called_one(tmp_path, name):
    (safetensors.torch.save_file if name.endswith("s") else torch.save)(STATE, tmp_path / name)
    with pytest.raises(LandscapeError, match="shard 1 of 2"):
        read_checkpoint(tmp_path / name)


# ---- moving averages ----------------------------------------------------------------------------------------------


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


BOTH = {
    "state_dict_ema": {"state_dict": STATE, "state_dict_ema": OTHER},
    "ema.shadow": {"model": STATE, "ema": {"decay": 0.99, "shadow": OTHER}},
    "params_ema": {"params": STATE, "params_ema": OTHER},
    "inner": {"net": {"state_dict": STATE, "ema_state_dict": OTHER}},
    "names": {"state_dict": {**prefixed("model.", STATE), **prefixed("model_ema.", OTHER), "model_ema.decay": torch.ones(())}},
    "pair": {**prefixed("online_model.", STATE), **prefixed("ema_model.", OTHER), "initted": torch.ones(())},
}  # fmt: skip


@pytest.mark.parametrize("layout", BOTH)
def test_weights_beside_their_average(tmp_path, layout, caplog):
    path = saved(tmp_path / "w.pt", BOTH[layout])
    found = read_checkpoint(path)
    assert "two sets of weights" in caplog.text
    assert found.other_container is not None
    assert torch.equal(found.state_dict["conv.weight"], STATE["conv.weight"])
    caplog.clear()
    for weights, state in (("raw", STATE), ("ema", OTHER)):
        chosen = read_checkpoint(path, weights=weights).state_dict
        assert chosen.keys() == state.keys()
        assert torch.equal(chosen["conv.weight"], state["conv.weight"])
    assert caplog.text == ""


@pytest.mark.parametrize(
    "content",
    [
        {"epoch": 1, "model_ema": OTHER},
        {"ema": {"module": OTHER}},
        prefixed("ema_model.", OTHER),
        {"n_averaged": torch.tensor(3), **prefixed("module.", OTHER)},
    ],
    ids=["container", "nested", "names", "swa"],
)
def test_an_average_alone_is_taken_without_a_word(tmp_path, content, caplog):
    path = saved(tmp_path / "w.pt", content)
    found = read_checkpoint(path)
    assert found.state_dict.keys() == OTHER.keys()
    assert found.other_container is None
    assert caplog.text == ""
    with pytest.raises(LandscapeError, match="expected raw weights beside their moving average"):
        read_checkpoint(path, weights="raw")


def test_a_layer_called_ema_is_no_average(tmp_path):
    state = {"ema.weight": torch.ones(2), "head.weight": torch.ones(3)}
    assert read_checkpoint(saved(tmp_path / "w.pt", state)).state_dict.keys() == state.keys()
    with pytest.raises(LandscapeError, match="expected a moving average"):
        read_checkpoint(tmp_path / "w.pt", weights="ema")


# ---- tensors that are not plain numbers ---------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: torch.ones(2, 3).to(torch.float8_e4m3fn), "of dtype torch.float8"),
        (lambda: torch.ones(2, 3).to_sparse(), "a sparse tensor"),
        (lambda: torch.ones(2, 3, device="meta"), "a meta tensor"),
        (lambda: torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.qint8), "quantised"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "a nested tensor"),
    ],
    ids=["float8", "sparse", "meta", "quantised", "nested"],
)
def test_tensors_that_are_no_plain_numbers_are_named(tmp_path, make, match):
    with pytest.raises(LandscapeError, match=rf"'conv\.weight' is {match}"):
        read_checkpoint(saved(tmp_path / "w.pt", STATE | {"conv.weight": make()}))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64, torch.uint8, torch.bool])
def test_weights_of_another_kind_of_number_are_not_copied(tmp_path, dtype):
    model = nn.Linear(3, 2)
    state = {"weight": torch.ones(2, 3).to(dtype), "bias": torch.ones(2)}
    with pytest.raises(
        LandscapeError, match=rf"'weight' holds {dtype}, the model torch\.float32: expected real numbers"
    ):
        load_weights(model, read_checkpoint(saved(tmp_path / "w.pt", state)))
    half = {"weight": torch.ones(2, 3), "bias": torch.ones(2).half()}
    load_weights(model, read_checkpoint(saved(tmp_path / "w.pt", half)))


# ---- hostile content ------------------------------------------------------------------------------------------------


def test_a_state_dict_that_contains_itself_has_an_end(tmp_path):
    content, average = {"epoch": 1}, {}
    content["state_dict"], content["ema"] = content, average
    average["module"] = average
    with pytest.raises(LandscapeError, match=r"expected a state dict, .* got the entries epoch, state_dict"):
        read_checkpoint(saved(tmp_path / "w.pt", content))


def test_a_compressed_file_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(saved(tmp_path / "w.pt", STATE)) as source:
        kept = [(name, source.read(name)) for name in source.namelist()]
    with zipfile.ZipFile(tmp_path / "big.pt", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target:
        for name, content in kept:
            target.writestr(name, content)
        with target.open("w/data/9", "w", force_zip64=True) as entry:
            for _ in range(300):
                entry.write(bytes(1 << 20))
    start = time.perf_counter()
    with pytest.raises(LandscapeError, match=r"would become 0\.315 GB in memory"):
        read_checkpoint(tmp_path / "big.pt")
    assert time.perf_counter() - start < 5


def test_a_tensor_that_repeats_one_number_for_ever_is_not_filled_in(tmp_path):
    state = {"w": torch.ones(1).expand(1 << 40)}
    with pytest.raises(LandscapeError, match="GB in memory, more than 100 times"):
        read_checkpoint(saved(tmp_path / "w.pt", state))


def test_a_number_does_not_become_gigabytes_of_zeros(tmp_path):
    hostile = b"\x80\x02}X\x01\x00\x00\x00ac__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85Rs."
    (tmp_path / "w.pt").write_bytes(hostile)
    with pytest.raises(LandscapeError, match="an array of 2147483647 bytes out of a number"):
        read_checkpoint(tmp_path / "w.pt")


@pytest.mark.parametrize("text", ["[" * 200_000, "1" * 5_000])
def test_metadata_that_json_cannot_hold(tmp_path, text):
    safetensors.torch.save_file(STATE, tmp_path / "w.safetensors", metadata={"landscape": text})
    with pytest.raises(LandscapeError, match="its metadata 'landscape' is"):
        read_checkpoint(tmp_path / "w.safetensors")


@pytest.mark.parametrize("path", ["/dev/zero", "a\0b.pt"])
def test_devices_and_impossible_names(path):
    with pytest.raises(LandscapeError, match=r"/dev/zero is a device|no checkpoint at a\\x00b\.pt"):
        read_checkpoint(path)
