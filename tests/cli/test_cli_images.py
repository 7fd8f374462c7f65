"""Images on disk from the command line: train on a list, look at the checkpoint elsewhere, one line for a bad list."""

import json

import numpy as np
import pytest
from cli_cases import landscape
from PIL import Image


@pytest.fixture
def images(tmp_path):
    lines = []
    for k in range(18):
        name = f"class {k % 3}/été {k}.png"
        (tmp_path / name).parent.mkdir(exist_ok=True)
        noise = np.random.default_rng(k).integers(0, 256, (20, 18, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / name)
        lines.append(f"{name} {k % 3}")
    (tmp_path / "train.txt").write_text("\r\n".join(lines[:12]))
    (tmp_path / "test.txt").write_text("\n".join(lines[12:]))
    return tmp_path


def arguments(images):
    return ("--data-dir", images, "--train-list", images / "train.txt", "--test-list", images / "test.txt")


def test_train_and_inspect(images):
    out, cache = images / "run", images / "cache"
    chosen = (
        "--dataset",
        "image-list",
        "--resize",
        16,
        "--relabel",
        "count",
        "--cache-dir",
        cache,
        "--model",
        "convnet",
    )
    done = landscape("train", *chosen, *arguments(images), "--epochs", 1, "--batch-size", 6, "--out", out)
    assert (done.code, done.err.count("Traceback")) == (0, 0)
    assert len(list(cache.iterdir())) == 1  # of the test images: training sees random parts
    moved = images / "lists"
    moved.mkdir()
    for name in ("train.txt", "test.txt"):
        (images / name).rename(moved / name)
    gone = landscape("inspect", out / "checkpoint.safetensors")
    assert gone.code == 2
    assert f"are no longer at {images / 'train.txt'}: name their place with --train-list" in gone.err
    lists = ("--train-list", moved / "train.txt", "--test-list", moved / "test.txt")
    found = landscape("inspect", out / "checkpoint.safetensors", *lists, "--split", "test", "--json")
    assert found.code == 0
    lanes = [row["lane"] for row in json.loads(found.out)["lanes"]]
    assert lanes[:3] == ["class 0", "class 1", "class 2"]


def test_a_bad_list_is_one_line(images):
    (images / "train.txt").write_text("class 0/été 0.png 0\nclass 1/none.png 1\n")
    done = landscape("train", "--dataset", "image-list", *arguments(images), "--out", images / "run")
    assert done.code == 2
    assert "train.txt, line 2: 'class 1/none.png' is missing, one of 1 of 2 listed images" in done.err
    assert len(done.err.strip().splitlines()) == 1
