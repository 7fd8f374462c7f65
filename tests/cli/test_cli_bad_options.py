"""Options with unknown names or impossible values, and outputs that cannot be written: one line, nothing written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from cli_cases import FEW, contents, refuses

MLP = ("--model", "mlp", "--epochs", "1")
ANALYSES = ["spectrum", "perturb", "flatness", "surface", "figures"]


def arguments_of(command: str, checkpoint: Path, folder: Path) -> list[object]:
    """Return a command that would succeed, writing into a new place in ``folder``."""
    if command in ("train", "run"):
        return [command, *MLP, "--out", folder / "new" / "out"]
    if command == "inspect":
        return [command, checkpoint]
    return [command, checkpoint, *FEW, "--out", folder / "new" / ("out" if command == "figures" else "out.nc")]


UNKNOWN = [
    ("train run inspect spectrum figures", "--dataset", "digit-lt", "digits-lt"),
    ("train run inspect spectrum figures", "--model", "restnet20", "resnet20"),
    ("train run inspect spectrum figures", "--group-rule", "mislas-cifar-10", "mislas-cifar10"),
    ("train run inspect spectrum figures", "--head", "linaer", "linear"),
    ("train run inspect spectrum perturb surface figures", "--device", "cud", "cuda"),
    ("train run", "--loss", "facal", "focal"),
    ("train run", "--profile", "exponental", "exponential"),
    ("train run", "--selection", "seed24", "seed42"),
    ("train run", "--base", "sdg", "sgd"),
    ("train run", "--reweight", "dwr", "drw"),
    ("train run", "--schedule", "cosin", "cosine"),
    ("train run", "--bn-statistics", "firstpass", "first-pass"),
    ("train", "--optimizer", "asma", "asam"),
    ("run", "--optimizers", "sgd,asma", "asam"),
    ("run spectrum perturb surface figures", "--preset", "quik", "quick"),
    ("run spectrum perturb surface figures", "--lanes", "0,tial", "tail"),
    ("run inspect spectrum perturb surface figures", "--split", "tset", "test"),
    ("run inspect spectrum perturb surface figures", "--objective", "facal", "focal"),
    ("run spectrum perturb surface figures", "--group-average", "class", "classes"),
    ("spectrum perturb surface figures", "--dtype", "float23", "float32"),
    ("flatness", "--preset", "quik", "quick"),
    ("flatness", "--lanes", "0,tial", "tail"),
    ("flatness", "--measures", "m_sharpnes", "m_sharpness"),
    ("flatness", "--placement", "spere", "sphere"),
    ("surface", "--kind", "plain", "plane"),
    ("surface", "--batchnorm", "frozn", "frozen"),
    ("surface", "--directions", "eigen:tial", "tail"),
    ("surface", "--directions", "randm", "random"),
]
UNKNOWN_CASES = [(c, option, value, known) for names, option, value, known in UNKNOWN for c in names.split()]


@pytest.mark.parametrize(("command", "option", "value", "known"), UNKNOWN_CASES)
def test_an_unknown_name_is_answered_with_the_nearest_known_one(command, option, value, known, checkpoint, tmp_path):
    typed = value.removeprefix("eigen:").removeprefix("sgd,").removeprefix("0,").partition("=")[0]
    arguments = [*arguments_of(command, checkpoint, tmp_path), option, value]
    refuses(tmp_path, *arguments, match=rf"{typed}.*{known}")


IMPOSSIBLE = [
    ("run spectrum perturb surface figures inspect", "--max-per-class=0", "max-per-class.*at least 1, got 0"),
    ("run spectrum perturb surface figures inspect", "--max-per-class=-1", "max-per-class.*at least 1, got -1"),
    ("run spectrum perturb surface figures", "--lanes=,", "none of them empty"),
    ("run spectrum perturb surface figures", "--lanes=12", "unknown lane '12'"),
    ("spectrum perturb surface figures", "--params=[", r"--params: '\[' is not a regular expression"),
    ("spectrum perturb surface figures", "--params=nothing_matches", "'nothing_matches' matches none of the 6"),
    ("spectrum perturb surface figures", "--device=cuda", "device 'cuda'.*choose auto, cpu or cuda"),
    ("train run", "--seed=-1", "seed.*-1"),
    ("spectrum", "--num-probes=-1", "num.probes.*-1"),
    ("spectrum", "--num-steps=0", "num.steps.*0"),
    ("spectrum", "--max-steps=0", "max.steps.*0"),
    ("spectrum", "--threshold=nan", "threshold.*nan"),
    ("perturb", "--num-draws=3", "num_draws.*3"),
    ("perturb", "--num-draws=0", "num_draws.*0"),
    ("perturb", "--radii=0.1,x", "--radii: expected comma-separated finite numbers.*'0.1,x'"),
    ("perturb", "--radii=-0.1", "radi.*-0.1"),
    ("perturb", "--radii=nan", "radi.*nan"),
    ("perturb", "--sigmas=-1", "sigma.*-1"),
    ("perturb", "--rhos=-1", "rho.*-1"),
    ("flatness", "--sigma=0", "sigma.*positive.*0.0"),
    ("flatness", "--rho=nan", "rho.*positive.*nan"),
    ("flatness", "--num-pairs=1", "num.pairs.*at least 2, got 1"),
    ("flatness", "--batch-size=0", "batch.size.*got 0"),
    ("flatness", "--measures=,", "--measures: expected comma-separated names"),
    ("surface", "--x=1:-1:0", "--x: expected START:STOP:COUNT.*'1:-1:0'"),
    ("surface", "--x=abc", "--x: expected START:STOP:COUNT.*'abc'"),
    ("surface", "--x=", "--x: expected START:STOP:COUNT.*''"),
    ("surface", "--y=0:1:1", "--y: expected START:STOP:COUNT.*'0:1:1'"),
    ("surface", "--y=0:nan:3", "--y: expected START:STOP:COUNT.*'0:nan:3'"),
    ("surface", "--num-pairs=0", "num.pairs.*0"),
    ("surface", "--batchnorm=recalibrate", "recalibrate"),
    ("surface", "--kind=line --y=0:1:3", "--y.*plane"),
    ("surface", "--directions=eigen:tail --num-pairs=2", "--num-pairs.*random"),
    ("surface", "--directions=eigen:", "lane"),
    ("train run", "--epochs=0", "epochs.*0"),
    ("train run", "--epochs=-3", "epochs.*-3"),
    ("train run", "--batch-size=0", "batch_size.*0"),
    ("train run", "--lr=nan", "lr.*nan"),
    ("train run", "--lr=-1", "lr.*-1"),
    ("spectrum perturb surface figures", "--lanes=0,0", "'0' is named twice"),
    ("surface", "--x=-1:1:1000000000", "--x: expected at most 100,000 points"),
    ("surface", "--range=auto --x=-1:1:5", "--x: '-1:1:5' and --range auto say two things"),
    ("perturb", "--radii=1e308", "radii: expected numbers up to 1e.06"),
    ("train run", "--weight-decay=-1", "weight_decay.*-1"),
    ("train run", "--loss-option=gamma", "--loss-option: expected NAME=VALUE.*'gamma'"),
    ("train run", "--loss=focal --loss-option=gamma=-1", "gamma.*-1"),
    ("train run", "--loss=focal --loss-option=gamma=much", "gamma.*much"),
    ("train run", "--loss=focal --loss-option=gamma=true", "gamma.*True"),
    ("train run", "--loss=focal --loss-option=weights_inside=yes", "weights_inside must be true or false, got 'yes'"),
    ("train", "--snapshot-every=-1", "--snapshot-every: .*got -1"),
    ("train", "--optimizer=sam --optimizer-option=rho=-1", "rho.*-1"),
    ("train", "--optimizer=sam --optimizer-option=rho=nan", "rho.*nan"),
    ("train", "--optimizer=sam --optimizer-option=rho=much", "rho.*much"),
    ("train", "--optimizer=sam --optimizer-option=foo=1", "unknown option of sam 'foo'.*known: .*rho"),
    ("train", "--optimizer=sam --optimizer-option=roh=1", "unknown option of sam 'roh': did you mean 'rho'"),
    ("train", "--optimizer-option==1", "--optimizer-option: expected NAME=VALUE"),
    ("train", "--lr=1e30 --epochs=2", "diverged.*lower the learning rate"),
    ("run", "--optimizers=,", "--optimizers"),
    ("run", "--optimizers=sgd,sgd", "'sgd' is named twice"),
    ("run", "--optimizers=sgd,,sam", "none of them empty"),
]
IMPOSSIBLE_CASES = [(c, options, match) for names, options, match in IMPOSSIBLE for c in names.split()]


@pytest.mark.parametrize(("command", "options", "match"), IMPOSSIBLE_CASES)
def test_an_impossible_value_is_named(command, options, match, checkpoint, tmp_path):
    if "cuda" in options and torch.cuda.is_available():
        match = None
    arguments = [*arguments_of(command, checkpoint, tmp_path), *options.split(" ")]
    if match is not None:
        refuses(tmp_path, *arguments, match=match)


@pytest.mark.parametrize("command", ["run", "figures", "spectrum"])
def test_a_wrong_lane_is_refused_before_the_work(command, checkpoint, tmp_path, monkeypatch):
    def work(*_args, **_options):
        raise AssertionError("the work began")

    monkeypatch.setattr("landscape.pipeline.train", work)
    monkeypatch.setattr("landscape.spectrum.measure.measure_wave", work)
    refuses(tmp_path, *arguments_of(command, checkpoint, tmp_path), "--lanes", "tial", match="tial.*tail")


# ---- where the results go -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["train", "run", *ANALYSES])
def test_an_output_below_a_file_cannot_be_written(command, checkpoint, tmp_path):
    (tmp_path / "file.txt").write_text("mine")
    *arguments, _ = arguments_of(command, checkpoint, tmp_path)
    refuses(tmp_path, *arguments, tmp_path / "file.txt" / "out", match=r"file\.txt.*another.*folder")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc")
@pytest.mark.parametrize("command", ["train", "run", *ANALYSES])
def test_an_output_in_proc_cannot_be_written(command, checkpoint, tmp_path):
    *arguments, _ = arguments_of(command, checkpoint, tmp_path)
    refuses(tmp_path, *arguments, "/proc/nope/out", match=r"/proc/nope.*another.*folder")


@pytest.mark.parametrize("command", ["spectrum", "perturb", "flatness", "surface"])
def test_a_folder_where_a_file_is_meant(command, checkpoint, tmp_path):
    *arguments, _ = arguments_of(command, checkpoint, tmp_path)
    refuses(tmp_path, *arguments, tmp_path, match=r"expected a file name such as .*got a folder")


@pytest.mark.parametrize("command", ["train", "run", "figures"])
def test_a_file_where_a_folder_is_meant(command, checkpoint, tmp_path):
    (tmp_path / "out").write_text("mine")
    *arguments, _ = arguments_of(command, checkpoint, tmp_path)
    refuses(tmp_path, *arguments, tmp_path / "out", match="cannot write")


@pytest.mark.parametrize("command", ["spectrum", "perturb", "flatness", "surface"])
def test_the_checkpoint_itself_is_not_overwritten(command, checkpoint, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(checkpoint.read_bytes())
    refuses(tmp_path, command, path, *FEW, "--out", path, match="--out .*checkpoint")
    refuses(tmp_path, command, path, *FEW, "--out", tmp_path / "." / "model.safetensors", match="--out .*checkpoint")


def test_nor_is_the_checkpoint_that_a_line_ends_in(checkpoint, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(checkpoint.read_bytes())
    arguments = ("--kind", "line", "--directions", path, "--out", path)
    refuses(tmp_path, "surface", checkpoint, *FEW, *arguments, match="--out .*checkpoint")


def test_a_finished_run_is_not_trained_over(trained, unchanged, tmp_path):
    unchanged(trained)
    refuses(trained, "train", *MLP, "--out", trained, match="holds a finished run.*--resume")
    refuses(trained, "train", *MLP, "--out", trained, "--resume", match=r"cannot resume.*epochs 2 \(asked for 1\)")


def test_empty_folders_of_the_user_survive_a_refusal(checkpoint, tmp_path):
    for folder in ("out/journal", "out/sgd", "out.nc.journal"):
        (tmp_path / folder).mkdir(parents=True)
    before = contents(tmp_path)
    for arguments in (
        ["figures", checkpoint, "--lanes", "tial", "--out", tmp_path / "out"],
        ["run", *MLP, "--lanes", "tial", "--out", tmp_path / "out"],
        ["spectrum", checkpoint, "--lanes", "tial", "--out", tmp_path / "out.nc"],
    ):
        refuses(tmp_path, *arguments, match="tial.*tail")
    assert contents(tmp_path) == before


def test_the_main_job_is_not_started_by_several_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    refuses(
        tmp_path,
        "run",
        *MLP,
        "--out",
        tmp_path / "out",
        match="analyses in one process, got 2: start it without torchrun",
    )


@pytest.mark.parametrize("kind", ["device", "pipe", "loop"])
def test_out_that_is_no_regular_file_is_left_alone(checkpoint, tmp_path, kind):
    out = tmp_path / "result.nc"
    if kind == "pipe":
        os.mkfifo(out)
    else:
        out.symlink_to("/dev/null" if kind == "device" else out.name)
    before = os.lstat(out)
    refuses(tmp_path, "perturb", checkpoint, "--out", out, *FEW, match=r"result\.nc")
    assert os.lstat(out).st_ino == before.st_ino
