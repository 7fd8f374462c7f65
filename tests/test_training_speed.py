"""Training in pieces, in mixed precision, compiled, channels last, in several processes; and what a run records."""

from __future__ import annotations

import json
import socket

import pytest
import torch
from torch import nn

from landscape.checkpoint import read_checkpoint
from landscape.errors import LandscapeError
from landscape.losses import Reweighting, build_loss
from landscape.models import build_model
from landscape.optimizers import OPTIMIZERS
from landscape.processes import Processes, joined_processes, launched_processes
from landscape.training import Objective, TrainSpec, execution, train
from landscape.training.folder import RECORD

SHARED = ("sgd", "sam", "imbsam", "gnm", "ccsam")


def tiny(**options):
    return TrainSpec(**{"model": "mlp", "epochs": 1, "batch_size": 64, "lr": 0.05} | options)


def weights_of(path):
    return torch.cat([tensor.double().flatten() for tensor in read_checkpoint(path).state_dict.values()])


def stop(done, total, text):
    raise KeyboardInterrupt


def killed_and_resumed(spec, out):
    with pytest.raises(KeyboardInterrupt):
        train(spec, out, progress=stop)
    return train(spec, out, resume=True)


# ---- pieces -------------------------------------------------------------------------------------------------------


def test_parts_of_a_weighted_batch_sum_to_the_whole():
    """Sum over parts of B_k / B times the part's mean: the class weights are divided by their mean over the batch."""
    counts, generator = [50, 20, 5], torch.Generator().manual_seed(0)
    objective = Objective(build_loss("ce", counts), Reweighting("cb", counts))
    logits = torch.randn(16, 3, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0] * 9 + [1, 1, 2, 0, 2, 1, 0])
    whole = objective(logits, labels).mean()
    parts = [slice(0, 9), slice(9, 15), slice(15, 16)]
    alone = sum(objective(logits[rows], labels[rows]).sum() / 16 for rows in parts)
    with objective.part_of(labels):
        together = sum(objective(logits[rows], labels[rows]).sum() / 16 for rows in parts)
    assert torch.isclose(together, whole, rtol=1e-12)
    assert abs(alone - whole) > 1e-2
    assert torch.equal(objective(logits, labels).mean(), whole)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_accumulated_training_takes_the_steps_of_whole_batches(tmp_path, optimizer):
    whole, pieces = (
        weights_of(train(tiny(optimizer=optimizer, reweight="cb", accumulate=k), tmp_path / str(k))) for k in (1, 3)
    )
    # Float32 through the steps of an epoch.
    torch.testing.assert_close(pieces, whole, rtol=1e-4, atol=1e-5)
    assert not pieces.equal(whole)


def test_batchnorm_sees_each_piece_alone(tmp_path):
    runs = [train(tiny(model="convnet", accumulate=k), tmp_path / str(k)) for k in (1, 2)]
    states = [read_checkpoint(run).state_dict for run in runs]
    tracked = [next(v for k, v in state.items() if k.endswith("num_batches_tracked")).item() for state in states]
    assert tracked[1] == 2 * tracked[0]


# ---- precision ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_trains_and_resumes_with_the_same_bits(tmp_path, precision):
    spec = tiny(epochs=2, precision=precision, optimizer="sam")
    whole = train(spec, tmp_path / "whole")
    assert killed_and_resumed(spec, tmp_path / "killed").read_bytes() == whole.read_bytes()
    checkpoint = read_checkpoint(whole)
    assert {tensor.dtype for tensor in checkpoint.state_dict.values()} == {torch.float32}
    exact = train(tiny(epochs=2, optimizer="sam"), tmp_path / "exact")
    # Float16 leaves out the first steps, until its scale fits.
    limit = 0.05 if precision == "bfloat16" else 0.2
    assert 1e-6 < (weights_of(exact) - weights_of(whole)).norm() / weights_of(exact).norm() < limit
    assert checkpoint.spec["accuracy"]["all"] == pytest.approx(read_checkpoint(exact).spec["accuracy"]["all"], abs=0.1)


def test_losses_are_taken_in_float32():
    objective, seen = Objective(build_loss("ce", [5, 5]), Reweighting("none", [5, 5])), []
    objective.loss.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert objective(torch.zeros(3, 2, dtype=torch.bfloat16), torch.tensor([0, 1, 1])).dtype == torch.float32
    assert seen == [torch.float32]


# ---- layout and compilation ---------------------------------------------------------------------------------------


def resnet(**options):
    return build_model("resnet20", num_classes=3, in_channels=3, image_size=16, **options)


@pytest.mark.parametrize(("num_inputs", "is_last"), [(2**16, True), (2**16 - 1, False)])
def test_large_batches_of_images_have_their_channels_last(num_inputs, is_last):
    options = {"num_inputs": num_inputs, "device": torch.device("cpu"), "precision": "float32"}
    model = execution.lay_out(resnet(), **options)
    kernel = model.layer2[0].conv1.weight
    assert kernel.is_contiguous(memory_format=torch.channels_last) is is_last
    seen = []
    model.layer3.register_forward_hook(lambda module, args, output: seen.append(output))
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    logits = model(images)
    assert seen[0].is_contiguous(memory_format=torch.channels_last) is is_last
    torch.testing.assert_close(logits, resnet()(images), rtol=1e-4, atol=1e-4)


def test_a_checkpoint_is_stored_contiguously(tmp_path, monkeypatch):
    monkeypatch.setattr(execution, "SMALL_BATCH", 1)
    state = read_checkpoint(train(tiny(model="convnet"), tmp_path)).state_dict
    assert all(tensor.is_contiguous() for tensor in state.values())


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo hides it, except where warnings are errors
@pytest.mark.parametrize("optimizer", ["imbsam", "ccsam"])
def test_a_compiled_run_is_the_run_to_rounding(tmp_path, monkeypatch, optimizer):
    """Several backward passes through one compiled graph; and a classifier whose calls are watched."""
    monkeypatch.setattr(execution, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain = train(tiny(optimizer=optimizer), tmp_path / "plain")
    compiled = train(tiny(optimizer=optimizer, compile=True), tmp_path / "compiled")
    assert read_checkpoint(compiled).state_dict.keys() == read_checkpoint(plain).state_dict.keys()
    torch.testing.assert_close(weights_of(compiled), weights_of(plain), rtol=1e-4, atol=1e-5)
    # The network, or what of it is not the head: neither the last batch nor the evaluation compiles again.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == (1 if optimizer == "imbsam" else 2)
    torch._dynamo.reset()


def test_only_the_parts_without_the_head_are_compiled_where_it_is_watched():
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Sequential(nn.Tanh(), nn.Linear(2, 3)))
    head = model[1][1]
    assert execution._parts_without(model, head) == [model[0], model[1][0]]


def test_compiling_without_a_compiler_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(execution.shutil, "which", lambda name: None)
    with pytest.raises(LandscapeError, match=r"no C\+\+ compiler found.*leave out --compile") as error:
        train(tiny(compile=True), tmp_path)
    assert "\n" not in str(error.value)


# ---- several processes --------------------------------------------------------------------------------------------


def train_as_one_of_two(rank, port, folder):
    import os

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    with joined_processes(torch.device("cpu")) as processes:
        assert processes == Processes(rank, 2)
        for optimizer in SHARED:
            # 37 images: batches with a rest, and a last one with fewer images than there are processes.
            train(tiny(optimizer=optimizer, reweight="cb", accumulate=2), folder / optimizer)
    assert not torch.distributed.is_initialized()


def test_two_processes_take_the_steps_of_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(train_as_one_of_two, (port, tmp_path / "two"), nprocs=2)
    for optimizer in SHARED:
        one = weights_of(train(tiny(optimizer=optimizer, reweight="cb"), tmp_path / "one" / optimizer))
        two = tmp_path / "two" / optimizer
        torch.testing.assert_close(weights_of(two / "checkpoint.safetensors"), one, rtol=1e-4, atol=1e-5)
        assert json.loads((two / RECORD).read_text())["timings"]["num_processes"] == 2


def test_processes_share_every_row_once():
    for num in (2, 7, 8):
        rows = [i for rank in range(2) for i in range(num)[Processes(rank, 2).rows(num)]]
        assert rows == list(range(num))


@pytest.mark.parametrize(("rank", "size"), [("2", "2"), ("x", "2"), ("0", "0")])
def test_contradicting_launch_variables_are_named(monkeypatch, rank, size):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(LandscapeError, match=f"RANK={rank} and WORLD_SIZE={size}"):
        launched_processes()


# ---- what a run records -------------------------------------------------------------------------------------------


def test_a_run_records_images_seconds_passes_and_memory_of_all_its_parts(tmp_path):
    spec = tiny(epochs=3, optimizer="sam")
    with pytest.raises(KeyboardInterrupt):
        train(spec, tmp_path, progress=stop)
    train(spec, tmp_path, resume=True)
    timings = json.loads((tmp_path / RECORD).read_text())["timings"]
    num_images = len(spec.load_data().train)
    assert len(timings["seconds_by_epoch"]) == len(timings["images_per_second_by_epoch"]) == 3
    assert timings["seconds"] == pytest.approx(sum(timings["seconds_by_epoch"]))
    for seconds, rate in zip(timings["seconds_by_epoch"], timings["images_per_second_by_epoch"]):
        assert seconds * rate == pytest.approx(num_images)
    assert timings["images_per_second"] * timings["seconds"] == pytest.approx(3 * num_images)
    assert timings["peak_memory_bytes"] > 50e6  # a process with torch in it
    assert timings["peak_memory_of"] == "the process (resident set)"
