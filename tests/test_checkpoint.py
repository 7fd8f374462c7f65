from __future__ import annotations

import os
import pickle
import zipfile

import pytest
import safetensors.torch
import torch
from torch import nn

from landscape.checkpoint import (
    load_weights,
    read_checkpoint,
    write_checkpoint,
)
from landscape.errors import LandscapeError
from landscape.models import Architecture, build_model, infer_architecture, infer_model

SPEC = {"model": "resnet20", "num_classes": 10, "seed": 0}


class Malice:
    """What a pickle can do to whoever opens it: here, create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def resnet(name="resnet20", num_classes=10, head="linear", seed=0):
    return build_model(name, num_classes=num_classes, in_channels=3, image_size=32, head=head, seed=seed)


@pytest.fixture(scope="module")
def state():
    return {"conv.weight": torch.randn(4, 3, 3, 3), "bn.running_mean": torch.randn(4), "steps": torch.tensor(7)}


def same_tensors(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_our_format_keeps_parameters_buffers_and_spec(tmp_path):
    model = resnet(seed=3)
    model(torch.randn(4, 3, 32, 32))  # moves the running statistics
    path = write_checkpoint(tmp_path / "a.safetensors", model.state_dict(), SPEC)
    checkpoint = read_checkpoint(path)
    assert checkpoint.container == "landscape"
    assert checkpoint.spec == SPEC
    assert same_tensors(checkpoint.state_dict, dict(model.state_dict()))
    other = resnet(seed=4)
    load_weights(other, checkpoint)
    assert same_tensors(dict(other.state_dict()), dict(model.state_dict()))


def test_same_content_gives_the_same_file(tmp_path, state):
    first = write_checkpoint(tmp_path / "a.safetensors", state, SPEC)
    second = write_checkpoint(tmp_path / "b.safetensors", state, SPEC)
    assert first.read_bytes() == second.read_bytes()
    assert read_checkpoint(first).sha256 == read_checkpoint(second).sha256
    changed = write_checkpoint(tmp_path / "c.safetensors", state, SPEC | {"seed": 1})
    assert read_checkpoint(changed).sha256 != read_checkpoint(first).sha256


def test_tied_weights_can_be_written(tmp_path):
    shared = torch.randn(3, 3)
    path = write_checkpoint(tmp_path / "a.safetensors", {"a": shared, "b": shared, "c": shared.T}, SPEC)
    assert torch.equal(read_checkpoint(path).state_dict["c"], shared.T)


@pytest.mark.parametrize("container", ["", "state_dict", "model", "model_state", "model_state_dict", "net"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "model.module."])
@pytest.mark.parametrize("is_zip", [True, False])
def test_foreign_torch_files(tmp_path, state, container, prefix, is_zip):
    wrapped = {prefix + name: tensor for name, tensor in state.items()}
    content = {container: wrapped, "epoch": 3, "optimizer": {"state": {}}} if container else wrapped
    path = tmp_path / "weights.th"
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    checkpoint = read_checkpoint(path)
    assert same_tensors(checkpoint.state_dict, state)
    assert checkpoint.spec is None
    assert checkpoint.container == (f"torch:{container}" if container else "torch")


def test_nested_containers(tmp_path, state):
    torch.save({"model": {"state_dict": state, "epoch": 3}}, tmp_path / "w.pt")
    checkpoint = read_checkpoint(tmp_path / "w.pt")
    assert checkpoint.container == "torch:model:state_dict"
    assert same_tensors(checkpoint.state_dict, state)


def test_prefix_stays_unless_all_names_share_it(tmp_path):
    names = {"module.a": torch.zeros(1), "b": torch.zeros(1)}
    torch.save(names, tmp_path / "w.pt")
    assert list(read_checkpoint(tmp_path / "w.pt").state_dict) == ["module.a", "b"]


def test_plain_safetensors(tmp_path, state):
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    safetensors.torch.save_file(wrapped, tmp_path / "w.bin", metadata={"format": "pt"})
    checkpoint = read_checkpoint(tmp_path / "w.bin")
    assert (checkpoint.container, checkpoint.spec) == ("safetensors", None)
    assert same_tensors(checkpoint.state_dict, state)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(LandscapeError, match=r"nowhere\.pt: the file does not exist"):
        read_checkpoint(tmp_path / "nowhere.pt")
    with pytest.raises(LandscapeError, match=f"got the folder {tmp_path}"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.98])
def test_truncated_files(tmp_path, kind, share):
    whole, path = tmp_path / "whole", tmp_path / f"cut.{kind}"
    tensors = {"w": torch.randn(100, 30)}
    if kind == "safetensors":
        safetensors.torch.save_file(tensors, whole)
    else:
        torch.save(tensors, whole, _use_new_zipfile_serialization=kind == "zip")
    path.write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
    with pytest.raises(LandscapeError, match=rf"cut\.{kind} is (truncated|not a whole|not a checkpoint)") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("is_zip", [True, False])
def test_code_in_a_pickle_is_not_executed(tmp_path, is_zip):
    path, victim = tmp_path / "evil.pt", tmp_path / "executed"
    torch.save({"state_dict": Malice(victim)}, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(LandscapeError, match=r"evil\.pt holds code .*mkdir.* was not executed"):
        read_checkpoint(path)
    assert not victim.exists()


def test_plain_pickle_is_not_executed(tmp_path):
    path, victim = tmp_path / "evil.pkl", tmp_path / "executed"
    path.write_bytes(pickle.dumps(Malice(victim)))
    with pytest.raises(LandscapeError, match=r"evil\.pkl holds code or objects other than tensors"):
        read_checkpoint(path)
    assert not victim.exists()


def test_whole_module_is_refused(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(LandscapeError, match=r"objects other than tensors \(torch\.nn\.modules\.linear\.Linear\)"):
        read_checkpoint(tmp_path / "module.pt")


def test_files_that_are_no_checkpoints(tmp_path):
    (tmp_path / "text.pt").write_text("hello world")
    with pytest.raises(LandscapeError, match=r"text\.pt is not a checkpoint: a text file .*hello"):
        read_checkpoint(tmp_path / "text.pt")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(LandscapeError, match=r"other\.zip is not a checkpoint"):
        read_checkpoint(tmp_path / "other.zip")
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "numbers.pt")
    with pytest.raises(LandscapeError, match="got the entries epoch, lr"):
        read_checkpoint(tmp_path / "numbers.pt")
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    with pytest.raises(LandscapeError, match="got list"):
        read_checkpoint(tmp_path / "list.pt")
    safetensors.torch.save_file({}, tmp_path / "none.safetensors")
    with pytest.raises(LandscapeError, match="holds no tensors"):
        read_checkpoint(tmp_path / "none.safetensors")


def test_damaged_metadata(tmp_path, state):
    for text, message in (("{oops", "is not JSON"), ("[1, 2]", r"expected a JSON object .*\[1, 2\]")):
        safetensors.torch.save_file(state, tmp_path / "w.safetensors", metadata={"landscape": text})
        with pytest.raises(LandscapeError, match=message):
            read_checkpoint(tmp_path / "w.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(tmp_path, state, value):
    broken = state | {"conv.weight": state["conv.weight"].clone()}
    broken["conv.weight"][0, 0, 0, :2] = value
    torch.save({"net": broken}, tmp_path / "w.pt")
    with pytest.raises(LandscapeError, match=r"2 of 108 values of 'conv\.weight' are NaN or infinite"):
        read_checkpoint(tmp_path / "w.pt")


def test_unwritable_path(tmp_path, state):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LandscapeError, match=r"cannot write .*file/a"):
        write_checkpoint(tmp_path / "file" / "a.safetensors", state, SPEC)


def checkpoint_of(tmp_path, model):
    torch.save(model.state_dict(), tmp_path / "w.pt")
    return read_checkpoint(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        ({"num_classes": 100}, {}, "its classifier has 100 classes, the model 10; wrong shape: linear.weight"),
        ({"name": "resnet32"}, {}, "its weights look like resnet32, the model is resnet20; unexpected: layer1.3"),
        ({}, {"name": "resnet32"}, "its weights look like resnet20, the model is resnet32; missing: layer1.3"),
        ({"head": "cosine"}, {}, "its classifier is a cosine head, the model's a linear head; missing: linear.bias"),
    ],
)
def test_mismatch_is_explained_and_changes_nothing(tmp_path, theirs, ours, message):
    model = resnet(**ours)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(LandscapeError, match=message) as caught:
        load_weights(model, checkpoint_of(tmp_path, resnet(**theirs, seed=1)))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert same_tensors(dict(model.state_dict()), before)


def test_old_files_without_batch_counters_load(tmp_path):
    model = resnet(seed=1)
    old = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save({"state_dict": old}, tmp_path / "w.pt")
    other = resnet()
    load_weights(other, read_checkpoint(tmp_path / "w.pt"))
    assert torch.equal(other.linear.weight, model.linear.weight)


def test_wrapped_model_is_recognised(tmp_path):
    wrapped = nn.ModuleDict({"module": nn.Linear(2, 2)})
    source = nn.Linear(2, 2)
    load_weights(wrapped, checkpoint_of(tmp_path, source))
    assert torch.equal(wrapped["module"].weight, source.weight)


@pytest.mark.parametrize("name", ["resnet20", "resnet32", "resnet44", "resnet56"])
@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_architecture_is_inferred(name, head):
    model = build_model(name, num_classes=7, in_channels=1, image_size=32, head=head)
    assert infer_architecture(model.state_dict()) == Architecture(name, 1, 7, head)


def test_other_architectures_are_not_claimed():
    for name in ("mlp", "convnet"):
        model = build_model(name, num_classes=7, in_channels=1, image_size=8)
        assert infer_model(model.state_dict()) is None
    deeper = resnet().state_dict() | {"layer4.0.conv1.weight": torch.zeros(1)}
    assert infer_model(deeper) is None
    uneven = resnet().state_dict() | {"layer1.3.conv1.weight": torch.zeros(1)}
    assert infer_model(uneven) is None
