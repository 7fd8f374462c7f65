"""What several tests of the command line read and none of them changes: a trained model, its analysis, a main job."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from cli_cases import FEW, contents, succeeds, write_cifar10, write_foreign

from landscape.pipeline import Drawing

MAIN_JOB = ("run", "--model", "mlp", "--epochs", "2", "--optimizers", "sgd,sam", *FEW)


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """The folder of a digits network trained for two epochs."""
    out = tmp_path_factory.mktemp("trained") / "run"
    succeeds("train", "--model", "mlp", "--epochs", "2", "--out", out)
    return out


@pytest.fixture(scope="session")
def checkpoint(trained) -> Path:
    return trained / "checkpoint.safetensors"


@pytest.fixture
def two(checkpoint, tmp_path) -> list[Path]:
    """Two checkpoints whose folders tell them apart."""
    paths = [tmp_path / name / "checkpoint.safetensors" for name in ("sgd", "sam")]
    for path in paths:
        path.parent.mkdir()
        shutil.copy(checkpoint, path)
    return paths


@pytest.fixture(scope="session")
def cifar(tmp_path_factory) -> Path:
    """A folder with both official layouts of a tiny CIFAR-10."""
    folder = tmp_path_factory.mktemp("cifar")
    write_cifar10(folder / "cifar-10-batches-bin", "bin")
    write_cifar10(folder / "cifar-10-batches-py", "py")
    return folder


@pytest.fixture(scope="session")
def foreign(tmp_path_factory) -> Path:
    return write_foreign(tmp_path_factory.mktemp("foreign") / "model_best.pth.tar")


@pytest.fixture(scope="session")
def main_job(tmp_path_factory) -> Path:
    """The folder of a main job; its figures are not drawn, which takes longer than all the rest of it."""
    out = tmp_path_factory.mktemp("main") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Drawing, "start", lambda *_: None)
        succeeds(*MAIN_JOB, "--out", out)
    return out


@pytest.fixture
def undrawn(monkeypatch) -> list[Path]:
    """Leave out figures and report, which take longer than all the rest; return where figures were asked for."""
    asked: list[Path] = []
    monkeypatch.setattr("landscape.pipeline.write_report", lambda path, *_: Path(path).touch())
    monkeypatch.setattr(Drawing, "start", lambda _self, out, _files: asked.append(Path(out)))
    return asked


@pytest.fixture
def unchanged():
    """Require, when the test is over, that the folders given to it hold what they held."""
    before: list[tuple[Path, dict[str, bytes | None]]] = []
    yield lambda folder: before.append((folder, contents(folder)))
    for folder, held in before:
        assert contents(folder) == held


@pytest.fixture(scope="session")
def cifar100(tmp_path_factory) -> Path:
    """A folder with the binary files of a tiny CIFAR-100: one image of each class."""
    folder = tmp_path_factory.mktemp("cifar100")
    labels = np.arange(100, dtype=np.uint8)
    records = np.concatenate([labels[:, None] // 5, labels[:, None], np.zeros((100, 3072), np.uint8)], axis=1)
    for name in ("train.bin", "test.bin"):
        (folder / name).write_bytes(records.astype(np.uint8).tobytes())
    return folder
