"""Axes come back from their recipe and from their file, or are refused in one line."""

from __future__ import annotations

import json
import pathlib

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from landscape.checkpoint import Checkpoint
from landscape.errors import LandscapeError
from landscape.models import NormedLinear
from landscape.randomness import stream
from landscape.risk import AnalyticRisk, ModelRisk
from landscape.spectrum import SpectrumOptions
from landscape.surface import (
    axes_from_recipe,
    between_axes,
    cosine,
    eigen_axes,
    gradient_axes,
    load_axes,
    random_axes,
    save_axes,
    three_point_axes,
    trajectory_axes,
)


def risk_of(seed=0, hidden=5, sha256=None, **options):
    generator = stream(seed, "recipes")
    model = nn.Sequential(nn.Linear(6, hidden), nn.BatchNorm1d(hidden), nn.Tanh(), NormedLinear(hidden, 3))
    for p in model.parameters():
        p.data.normal_(generator=generator)
    images = torch.randn(12, 6, generator=stream(0, "recipes/images"))
    attributes = {"checkpoint": f"{seed}.pt", "checkpoint_sha256": sha256 or f"{seed}" * 64}
    return ModelRisk(model.eval(), (images, torch.arange(12) % 3), attributes=attributes, **options)


KINDS = {
    "random": lambda r: random_axes(r, seed=7, pair=2),
    "random line": lambda r: random_axes(r, num=1, seed=7, normalization="layer", one_dimensional="scale"),
    "gradient": lambda r: gradient_axes(r, "0,1", length=0.5),
    "eigen": lambda r: eigen_axes(r, "2", seed=3, options=SpectrumOptions(tolerance=1e-3, max_steps=60)),
    "eigen line": lambda r: eigen_axes(r, "all", ends="max"),
}


def through_json(axes):
    return json.loads(json.dumps(axes.recipe))


def same(one, other):
    return all(a.equal(b) and a.dtype == b.dtype for a, b in zip(one.vectors, other.vectors, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_recipe_gives_the_same_bits(kind, dtype):
    risk = risk_of(dtype=dtype)
    axes = KINDS[kind](risk)
    again = axes_from_recipe(risk_of(dtype=dtype), through_json(axes))
    assert same(axes, again)
    assert again.record() == axes.record()
    assert axes.recipe["checkpoint_sha256"] == "0" * 64


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_recipe_serves_another_checkpoint_with_its_own_weights(kind):
    one, other = risk_of(0), risk_of(1)
    axes = axes_from_recipe(other, KINDS[kind](one).recipe)
    assert same(axes, KINDS[kind](other))
    assert axes.recipe["checkpoint_sha256"] == "1" * 64


THROUGH = {
    "between": (1, lambda r, points: between_axes(r, *points)),
    "three-point": (2, lambda r, points: three_point_axes(r, *points)),
    "trajectory": (4, lambda r, points: trajectory_axes(r, points, through="mean")),
    "trajectory line": (4, lambda r, points: trajectory_axes(r, points, num=1)),
}


@pytest.mark.parametrize("kind", list(THROUGH))
def test_axes_through_checkpoints_come_back_with_those_checkpoints_only(kind):
    num, build = THROUGH[kind]
    risk, points = risk_of(0), [risk_of(seed) for seed in range(num, 0, -1)]
    axes = build(risk, points)
    again = axes_from_recipe(risk, through_json(axes), points)
    assert same(axes, again)
    assert again.record() == axes.record()
    with pytest.raises(
        LandscapeError, match=rf"expected the checkpoint {num}.pt \({str(num) * 12}\), got 9{{12}}"
    ) as error:
        axes_from_recipe(risk, axes.recipe, [risk_of(9), *points[1:]])
    assert "\n" not in str(error.value)
    with pytest.raises(LandscapeError, match=rf"expected {num} checkpoints \({num}.pt.*\), got 0"):
        axes_from_recipe(risk, axes.recipe)


def test_a_checkpoint_file_and_its_risk_are_one_point():
    risk, other = risk_of(0), risk_of(1)
    state = {name: t.clone() for name, t in other.layout.named(other.theta).items()}
    stored = Checkpoint(pathlib.Path("1.pt"), state, None, "1" * 64, "torch")
    axes = axes_from_recipe(risk, between_axes(risk, other).recipe, [stored])
    assert same(axes, between_axes(risk, other))


def test_a_recipe_that_lacks_an_entry():
    with pytest.raises(LandscapeError, match="random axes: the entry 'pair' is missing"):
        axes_from_recipe(risk_of(), {"kind": "random", "num": 1, "seed": 0})


# ---- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KINDS, *THROUGH])
def test_a_file_gives_everything_back_bit_for_bit(kind, tmp_path):
    risk = risk_of(0)
    if kind in THROUGH:
        num, build = THROUGH[kind]
        axes = build(risk, [risk_of(seed) for seed in range(num, 0, -1)])
    else:
        axes = KINDS[kind](risk)
    loaded = load_axes(save_axes(axes, tmp_path / "axes.safetensors", risk.layout), risk)
    assert same(axes, loaded)
    assert json.dumps(loaded.record()) == json.dumps(axes.record())
    assert loaded.marks == axes.marks
    assert (axes.origin is None and loaded.origin is None) or axes.origin.equal(loaded.origin)


def test_a_file_is_named_tensors_with_json_metadata(tmp_path):
    risk = risk_of(0)
    axes = random_axes(risk, seed=7)
    path = save_axes(axes, tmp_path / "axes.safetensors", risk.layout)
    with safetensors.safe_open(path, framework="pt") as file:
        keys, metadata = set(file.keys()), file.metadata()
        assert file.get_tensor("beta/0.weight").equal(risk.layout.named(axes.vectors[1])["0.weight"])
    assert keys == {f"{role}/{name}" for role in ("alpha", "beta") for name in risk.layout.names}
    assert json.loads(metadata["recipe"]) == axes.recipe
    assert json.loads(metadata["checkpoint_sha256"]) == "0" * 64
    assert "orthogonal after scaling" in json.loads(metadata["normalization"])


def test_axes_of_another_checkpoint_are_refused_unless_wanted(tmp_path):
    risk, other = risk_of(0), risk_of(1)
    path = save_axes(random_axes(risk), tmp_path / "axes.safetensors", risk.layout)
    with pytest.raises(LandscapeError, match=r"belongs to the checkpoint 0{12}, this is 1{12}") as error:
        load_axes(path, other)
    assert "\n" not in str(error.value)
    loaded = load_axes(path, other, is_other_allowed=True)
    assert same(loaded, random_axes(risk))
    assert cosine(loaded.vectors[0], random_axes(other).vectors[0]) < 0.999


def changed(path, change, metadata=None):
    with safetensors.safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        kept = file.metadata() if metadata is None else metadata
    change(tensors)
    path.write_bytes(safetensors.torch.save(tensors, metadata=kept))
    return path


def test_files_that_do_not_fit_are_refused_in_one_line(tmp_path):
    risk = risk_of(0)
    axes = random_axes(risk)

    def saved():
        return save_axes(axes, tmp_path / "axes.safetensors", risk.layout)

    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(saved().read_bytes()[:-9])
    cases = [
        (saved(), risk_of(0, hidden=4), r"does not fit.*10 wrong shape, first alpha/0.weight"),
        (saved(), risk_of(0, params="head"), r"does not fit.*8 unexpected, first alpha/0.bias"),
        (tmp_path / "none.safetensors", risk, "no file of axes at"),
        (cut, risk, "truncated or damaged"),
    ]
    for path, other, message in cases:
        with pytest.raises(LandscapeError, match=message) as error:
            load_axes(path, other)
        assert "\n" not in str(error.value)
    for change, metadata, message in [
        (lambda t: t.pop("beta/0.weight"), None, "1 missing, first beta/0.weight"),
        (lambda t: t.update({"gamma/0.weight": torch.zeros(1)}), None, "expected tensors alpha/"),
        (lambda t: None, {"kind": '"random"'}, "is no file of axes: its metadata lack normalization"),
        (
            lambda t: None,
            dict.fromkeys(("kind", "normalization", "labels", "recipe", "marks", "attributes"), "{"),
            "not JSON",
        ),
    ]:
        with pytest.raises(LandscapeError, match=message):
            load_axes(changed(saved(), change, metadata), risk)
    toy = AnalyticRisk(lambda t: t.sum()[None], torch.ones(3))
    with pytest.raises(LandscapeError, match=rf"axes of {len(risk.theta)} weights.*layout of 3"):
        save_axes(axes, tmp_path / "a.safetensors", toy.layout)
    with pytest.raises(LandscapeError, match="cannot write"):
        save_axes(axes, tmp_path / "no folder" / "a.safetensors", risk.layout)
