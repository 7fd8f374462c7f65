"""Checkpoints that are missing, damaged, hostile or of another network: one line, nothing executed, nothing written."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from cli_cases import FEW, Outcome, Payload, landscape, refuses, require_one_line, succeeds, write_foreign

from landscape.checkpoint import read_checkpoint, write_checkpoint

COMMANDS = ["inspect", "spectrum", "perturb", "flatness", "surface", "figures"]


def arguments_of(command: str, path: Path, folder: Path) -> list[object]:
    out = {"inspect": [], "figures": ["--out", folder / "new" / "figures"]}
    return [command, path, *out.get(command, ["--out", folder / "new" / "result.nc"])]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_file(command, tmp_path):
    refuses(tmp_path, *arguments_of(command, tmp_path / "no.pt", tmp_path), match=r"no checkpoint at .*no\.pt")


def test_a_folder_instead_of_a_file(trained, tmp_path):
    refuses(tmp_path, *arguments_of("figures", trained, tmp_path), match="expected a checkpoint file, got the folder")


def cut(source: Path, target: Path, share: float) -> Path:
    content = source.read_bytes()
    target.write_bytes(content[: int(share * len(content))])
    return target


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_a_truncated_safetensors_file(checkpoint, tmp_path, share):
    path = cut(checkpoint, tmp_path / "cut.safetensors", share)
    refuses(tmp_path, *arguments_of("spectrum", path, tmp_path), match=r"cut\.safetensors.*truncated or damaged")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_a_truncated_torch_file(tmp_path, share, is_zip):
    whole = tmp_path / "whole.pt"
    torch.save({"w": torch.ones(1000)}, whole, _use_new_zipfile_serialization=is_zip)
    path = cut(whole, tmp_path / "cut.pt", share)
    refuses(tmp_path, *arguments_of("spectrum", path, tmp_path), match=r"cut\.pt is truncated or damaged")


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all, but a letter to a friend\n"], ids=["empty", "text"])
def test_an_empty_file_and_a_text_file(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    refuses(tmp_path, *arguments_of("figures", tmp_path / name, tmp_path), match=f"{name} is not a")


def test_a_zip_archive_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("beach.txt", "sand")
    refuses(tmp_path, "inspect", tmp_path / "photos.zip", match="not a checkpoint: a zip archive that torch did not")


def write_hostile(path: Path, kind: str, trace: Path) -> Path:
    payload = Payload(trace)
    if kind == "raw pickle":
        path.write_bytes(pickle.dumps({"state_dict": payload}, protocol=2))
    elif kind == "text pickle":
        path.write_bytes(pickle.dumps({"state_dict": payload}, protocol=0))
    else:
        torch.save({"state_dict": {"w": torch.ones(2)}, "x": payload}, path)
    return path


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", ["raw pickle", "text pickle", "torch zip"])
def test_code_in_a_file_is_not_executed(command, kind, tmp_path):
    trace = tmp_path / "executed"
    path = write_hostile(tmp_path / "model.pt", kind, trace)
    if kind == "torch zip":  # the payload is live: whoever unpickles it runs it
        torch.load(path, weights_only=False)
        assert trace.exists()
        trace.unlink()
    match = "not a checkpoint" if kind == "text pickle" else r"code or objects other than tensors.*not executed"
    refuses(tmp_path, *arguments_of(command, path, tmp_path), match=match)
    assert not trace.exists()


def test_code_in_the_checkpoint_to_draw_a_line_to_is_not_executed(checkpoint, tmp_path):
    trace = tmp_path / "executed"
    path = write_hostile(tmp_path / "model.pt", "torch zip", trace)
    arguments = ("surface", checkpoint, "--kind", "line", "--directions", path, "--out", tmp_path / "x.nc", *FEW)
    refuses(tmp_path, *arguments, match="not executed")
    assert not trace.exists()


def test_in_a_process_of_its_own_too(tmp_path):
    trace, out = tmp_path / "executed", tmp_path / "out"
    path = write_hostile(tmp_path / "model.pt", "torch zip", trace)
    code = "from landscape.cli import main; main()"
    command = [sys.executable, "-c", code, "figures", str(path), "--out", str(out)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    require_one_line(Outcome(result.returncode, result.stdout, result.stderr), "not executed")
    assert not trace.exists()
    assert not out.exists()


def test_a_file_with_objects_that_are_not_weights(tmp_path):
    torch.save({"epoch": 3, "best": 0.5}, tmp_path / "state.pt")
    refuses(tmp_path, "inspect", tmp_path / "state.pt", match=r"expected a state dict.*got the entries epoch, best")


# ---- another network ----------------------------------------------------------------------------------------------


def cifar_of(folder: Path) -> tuple[object, ...]:
    return ("--dataset", "cifar10", "--data-dir", folder, "--max-per-class", "1")


def test_another_depth_says_what_did_not_match(foreign, cifar, tmp_path):
    arguments = (*arguments_of("figures", foreign, tmp_path), *cifar_of(cifar), "--model", "resnet32")
    refuses(tmp_path, *arguments, match=r"look like resnet20, the model is resnet32; missing: layer1\.3\.conv1\.weight")


def test_another_architecture_says_what_did_not_match(checkpoint, tmp_path):
    arguments = (*arguments_of("spectrum", checkpoint, tmp_path), "--model", "convnet")
    refuses(tmp_path, *arguments, match=r"does not fit the model: .*missing: .*unexpected: ")


def test_another_head_says_what_did_not_match(foreign, cifar, tmp_path):
    arguments = (*arguments_of("spectrum", foreign, tmp_path), *cifar_of(cifar), "--head", "cosine")
    refuses(tmp_path, *arguments, match="classifier is a linear head, the model's a cosine head")


def test_ten_classes_on_data_with_a_hundred(foreign, tmp_path, cifar100):
    arguments = (*arguments_of("figures", foreign, tmp_path), "--dataset", "cifar100", "--data-dir", cifar100)
    refuses(tmp_path, *arguments, match=r"classifier has 10 classes, the model 100; wrong shape: linear\.weight")


def test_a_network_for_colour_images_on_grey_ones(foreign, tmp_path):
    arguments = (*arguments_of("spectrum", foreign, tmp_path), "--dataset", "digits-lt")
    refuses(tmp_path, *arguments, match=r"wrong shape: conv1\.weight \(16, 3, 3, 3\) instead of \(16, 1, 3, 3\)")


def test_a_foreign_file_without_model_or_data(foreign, tmp_path):
    refuses(tmp_path, *arguments_of("spectrum", foreign, tmp_path), match=r"does not record its data.*--dataset")
    torch.save({"w": torch.ones(2)}, tmp_path / "w.pt")
    arguments = (*arguments_of("spectrum", tmp_path / "w.pt", tmp_path), "--dataset", "digits-lt")
    refuses(tmp_path, *arguments, match=r"does not record its model.*--model")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(checkpoint, tmp_path, value):
    stored = read_checkpoint(checkpoint)
    name = list(stored.state_dict)[2]
    stored.state_dict[name].view(-1)[1] = value
    path = write_checkpoint(tmp_path / "diverged.safetensors", stored.state_dict, stored.spec)
    refuses(tmp_path, *arguments_of("figures", path, tmp_path), match=rf"1 of \d+ values of '{name}' are NaN or inf")


# ---- a record that is not ours ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"data": {"name": "digits-lt", "ratio": 3}}, "record.*ratio"),
        ({"data": {"name": "digits"}}, "unknown data set 'digits'"),
        ({"data": {"imbalance_ratio": 3}}, "record"),
        ({"data": "digits-lt"}, "record"),
        ({"data": None}, "does not record its data"),
        ({"data": {"name": ["digits-lt"]}}, "record"),
        ({"data": {"name": "digits-lt", "imbalance_ratio": "twenty"}}, "record"),
        ({"model": "mpl"}, "unknown model 'mpl': did you mean 'mlp'"),
        ({"model": 3}, "record"),
        ({"head": "linaer"}, "unknown head 'linaer'"),
        ({"loss": "focle"}, "unknown loss 'focle'"),
        ({"loss": "focal", "loss_options": {"gama": 1}}, "gama"),
        ({"loss": "focal", "loss_options": [1]}, "record"),
    ],
)
def test_a_record_that_makes_no_sense(checkpoint, tmp_path, change, match):
    stored = read_checkpoint(checkpoint)
    path = write_checkpoint(tmp_path / "edited.safetensors", stored.state_dict, stored.spec | change)
    refuses(tmp_path, *arguments_of("spectrum", path, tmp_path), match=match)


def test_a_record_that_is_not_json(checkpoint, tmp_path):
    state = read_checkpoint(checkpoint).state_dict
    path = tmp_path / "edited.safetensors"
    safetensors.torch.save_file(state, path, metadata={"landscape": "{"})
    refuses(tmp_path, "inspect", path, match="metadata 'landscape' is not JSON")


def test_data_that_have_moved_since_the_training(tmp_path, cifar, unchanged):
    """The folder in the record is gone: say which, and how to name the new one; naming it is all that is needed."""
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(cifar / "cifar-10-batches-bin", data)
    chosen = ("--dataset", "cifar10", "--data-dir", data, "--model", "convnet", "--epochs", "1", "--batch-size", "30")
    succeeds("train", *chosen, "--out", run)
    data.rename(tmp_path / "moved")
    unchanged(run)
    path = run / "checkpoint.safetensors"
    for command in COMMANDS:
        refuses(tmp_path, *arguments_of(command, path, tmp_path), match=rf"{data}.*--data-dir")
    assert "truck" in succeeds("inspect", path, "--data-dir", tmp_path / "moved")


def test_another_checkpoint_of_another_network_to_draw_a_line_to(checkpoint, tmp_path):
    other = write_foreign(tmp_path / "other.pt")
    arguments = ("surface", checkpoint, "--kind", "line", "--directions", other, "--out", tmp_path / "x.nc", *FEW)
    refuses(tmp_path, *arguments, match="another architecture|does not record")
    assert landscape("inspect", checkpoint).code == 0
