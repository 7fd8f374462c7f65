"""Axes against closed forms: norms, planes through points, a singular value decomposition, slopes and eigenvalues."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from landscape.checkpoint import Checkpoint
from landscape.errors import LandscapeError
from landscape.models import NormedLinear
from landscape.randomness import stream
from landscape.risk import AnalyticRisk, ModelRisk
from landscape.spectrum import extreme_directions
from landscape.surface import (
    Axes,
    Mark,
    anchors,
    axes_from_recipe,
    between,
    between_axes,
    cosine,
    eigen_axes,
    gradient_axes,
    measure_surface,
    orthogonal_to,
    point_of,
    random_axes,
    random_directions,
    three_point_axes,
    trajectory_axes,
)

COUNTS = (12, 6, 3)


class Net(nn.Module):
    """A convolution, BatchNorm, a smooth activation, a linear layer and a cosine head; filters of unequal norms."""

    def __init__(self, seed=0):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.hidden = nn.Linear(16, 6)
        self.head = NormedLinear(6, 3)
        generator = stream(seed, "axes/net")
        for p in self.parameters():
            p.data.normal_(generator=generator).mul_(
                torch.logspace(-1, 1, p.shape[0]).view(-1, *[1] * (p.dim() - 1)) / p[0].numel() ** 0.5
            )

    def forward(self, x):
        x = torch.tanh(self.norm(self.conv(x))).flatten(1)
        return 4 * self.head(torch.tanh(self.hidden(x)))


def net_risk(seed=0, dtype=torch.float64, **options):
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor(COUNTS))
    images = torch.randn(21, 1, 4, 4, generator=stream(0, "axes/images")) + labels[:, None, None, None]
    groups = {"head": (0,), "medium": (1,), "tail": (2,)}
    return ModelRisk(Net(seed).eval(), (images, labels), groups=groups, dtype=dtype, **options)


def toy(theta, losses=lambda t: (t**2).sum()[None], **options):
    return AnalyticRisk(losses, torch.as_tensor(theta, dtype=torch.float64), **options)


def draws(*shape, name):
    return torch.randn(*shape, generator=stream(0, f"axes/{name}"), dtype=torch.float64)


# ---- random -------------------------------------------------------------------------------------------------------


def units(layout, vector, normalization):
    """Return the vector split by hand into what each normalisation rescales on its own; without what does not move."""
    parts = {name: t.double() for name, t in layout.named(vector).items()}
    if normalization == "filter":
        rows = [*parts["conv.weight"].flatten(1), *parts["hidden.weight"], *parts["head.weight"].T]
    else:
        rows = [parts[name].flatten() for name in ("conv.weight", "hidden.weight", "head.weight")]
    return rows if normalization != "model" else [torch.cat(rows)]


NUM_UNITS = {"filter": 4 + 6 + 3, "layer": 3, "model": 1}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("normalization", list(NUM_UNITS))
def test_every_unit_has_the_norm_of_its_weights_and_the_axes_are_orthogonal_after_scaling(normalization, dtype):
    risk = net_risk(dtype=dtype)
    axes = random_axes(risk, seed=5, pair=2, normalization=normalization)
    theirs = [float(w.norm()) for w in units(risk.layout, risk.theta, normalization)]
    for vector in axes.vectors:
        assert vector.dtype == dtype
        norms = [float(d.norm()) for d in units(risk.layout, vector, normalization)]
        assert len(norms) == NUM_UNITS[normalization]
        np.testing.assert_allclose(norms, theirs, rtol=1e-5)
        for name in ("conv.bias", "norm.weight", "norm.bias", "hidden.bias"):
            assert not risk.layout.named(vector)[name].any()
    assert abs(axes.cosine) < 1e-5
    assert axes.attributes["largest_norm_error"] < 1e-5
    assert axes.norms[0] == pytest.approx(axes.norms[1], rel=1e-5)


def test_the_normalisations_differ_where_filters_do():
    risk = net_risk()
    found = {n: random_axes(risk, num=1, normalization=n) for n in NUM_UNITS}
    lengths = {n: axes.norms[0] for n, axes in found.items()}
    assert lengths == pytest.approx(dict.fromkeys(NUM_UNITS, lengths["filter"]))  # the same weights move
    for coarse, fine in (("layer", "filter"), ("model", "layer")):
        norms = [float(d.norm()) for d in units(risk.layout, found[coarse].vectors[0], fine)]
        theirs = [float(w.norm()) for w in units(risk.layout, risk.theta, fine)]
        assert np.abs(np.divide(norms, theirs) - 1).max() > 0.1


def test_all_normalisations_rescale_the_same_raw_draws():
    risk = net_risk()
    raw = random_axes(risk, num=1, seed=2, normalization="gaussian").vectors[0]
    for normalization in NUM_UNITS:
        d = random_axes(risk, num=1, seed=2, normalization=normalization).vectors[0]
        for a, b in zip(units(risk.layout, d, normalization), units(risk.layout, raw, normalization)):
            assert cosine(a, b) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("normalization", ["filter", "layer", "model", "gaussian"])
def test_biases_and_normalisation_layers_move_on_request(normalization):
    risk = net_risk()
    axes = random_axes(risk, normalization=normalization, one_dimensional="scale")
    assert abs(axes.cosine) < 1e-5
    for vector in axes.vectors:
        assert all(bool(part.all()) for part in risk.layout.unflatten(vector))
    if normalization == "layer":
        for d, w in zip(risk.layout.unflatten(axes.vectors[0]), risk.layout.unflatten(risk.theta)):
            assert float(d.norm()) == pytest.approx(float(w.norm()))
    if normalization == "model":
        assert axes.norms == pytest.approx([float(risk.theta.norm())] * 2)


@pytest.mark.parametrize("normalization", ["filter", "layer", "model", "gaussian"])
def test_seeds_pairs_and_axes_are_independent(normalization):
    risk = ModelRisk(nn.Linear(500, 4, bias=False), (torch.ones(4, 500), torch.arange(4)))
    options = {"normalization": normalization}
    drawn = [random_axes(risk, seed=s, pair=p, **options).vectors[0] for s in range(2) for p in range(2)]
    for i, d in enumerate(drawn):
        for e in drawn[:i]:
            assert abs(cosine(d, e)) < 5 / math.sqrt(2000)
    assert random_axes(risk, num=1, seed=1, pair=1, **options).vectors[0].equal(drawn[3])  # the plane's first axis


def test_a_gaussian_direction_has_unit_variance_whatever_the_weights():
    model = nn.Linear(5000, 4)
    model.weight.data.mul_(100)
    axes = random_axes(ModelRisk(model, (torch.ones(4, 5000), torch.arange(4))), normalization="gaussian")
    for vector in axes.vectors:
        assert abs(float(vector[:20000].var()) - 1) < 5 * math.sqrt(2 / 20000)
        assert not vector[20000:].any()  # the bias
    assert "largest_norm_error" not in axes.attributes


@pytest.mark.parametrize("normalization", ["filter", "layer", "model", "gaussian"])
def test_two_checkpoints_share_the_raw_draws(normalization):
    """Within each unit that is rescaled on its own, the directions of two checkpoints are parallel."""
    one, other = net_risk(0), net_risk(1)
    unit = "model" if normalization == "gaussian" else normalization
    for axis in range(2):
        d, e = (random_axes(r, seed=4, normalization=normalization).vectors[axis] for r in (one, other))
        for a, b in zip(units(one.layout, d, unit), units(one.layout, e, unit)):
            assert cosine(a, b) == pytest.approx(1, abs=1e-9 if axis == 0 else 0.5)
    assert normalization == "gaussian" or not d.equal(e)


def test_filters_of_one_weight_are_reported():
    model = nn.Sequential(nn.Conv2d(3, 3, 1, groups=3, bias=False), nn.Flatten(), nn.Linear(12, 3, bias=False))
    images = torch.randn(9, 3, 2, 2, generator=stream(0, "axes/depthwise"))
    axes = random_axes(ModelRisk(model, (images, torch.arange(9) % 3)))
    assert abs(axes.cosine) < 1e-5
    assert axes.attributes["largest_norm_error"] > 1e-5


def test_random_axes_are_the_directions_that_a_surface_draws():
    risk = net_risk()
    axes = random_axes(risk, seed=3, pair=1)
    assert all(a.equal(b) for a, b in zip(axes.vectors, random_directions(risk, num=2, seed=3, pair=1)))
    given = measure_surface(risk, "all", kind="plane", directions=axes.vectors, x=[0, 1], y=[0, 1])
    drawn = measure_surface(risk, "all", kind="plane", x=[0, 1], y=[0, 1], num_pairs=2, seed=3)
    np.testing.assert_array_equal(given.loss[0], drawn.loss[1])


# ---- through checkpoints ------------------------------------------------------------------------------------------


def at(risk, axes, mark):
    start = risk.theta.double() if axes.origin is None else axes.origin
    return start + sum(c * d.double() for c, d in zip(mark, axes.vectors))


def test_the_line_between_two_checkpoints_is_theirs():
    one, other = net_risk(0, attributes={"checkpoint": "a.pt"}), net_risk(1, attributes={"checkpoint": "b.pt"})
    axes = between_axes(one, other)
    assert axes.vectors[0].equal(between(one, other))
    assert axes.labels == ("0: a.pt, 1: b.pt",)
    assert axes.marks == (Mark(0, 0, "a.pt"), Mark(1, 0, "b.pt"))
    assert at(one, axes, axes.marks[1][:1]).equal(other.theta)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_plane_through_three_points_contains_all_three(dtype):
    risk, *others = (net_risk(seed, dtype=dtype) for seed in range(3))
    axes = three_point_axes(risk, *others)
    for mark, point in zip(axes.marks, (risk, *others)):
        found = at(risk, axes, mark[:2])
        assert float((found - point.theta.double()).abs().max()) < 1e-12
    assert [mark[:2] for mark in axes.marks[:2]] == [(0, 0), (1, 0)]
    assert abs(axes.cosine) < 1e-14
    assert axes.norms[0] == pytest.approx(axes.norms[1], rel=1e-14)  # true to scale
    u, w = (other.theta.double() - risk.theta.double() for other in others)
    place = complex(*axes.marks[2][:2]) * float(u.norm())
    assert abs(place) == pytest.approx(float(w.norm()))
    assert abs(place - float(u.norm())) == pytest.approx(float((w - u).norm()))
    assert max(axes.attributes["off_plane"]) < 1e-12
    assert axes.attributes["distances"] == pytest.approx([float(u.norm()), float(w.norm()), float((w - u).norm())])


def test_the_loss_at_the_marks_is_the_loss_of_the_checkpoints():
    risk, *others = (net_risk(seed) for seed in range(3))
    axes = three_point_axes(risk, *others)
    x = sorted(mark.alpha for mark in axes.marks)
    plane = measure_surface(risk, "classes", kind="plane", directions=axes.vectors, x=x, y=[0, axes.marks[2].beta])
    for mark, point in zip(axes.marks, (risk, *others)):
        found = plane.loss.sel(alpha=mark.alpha, beta=mark.beta)[0]
        np.testing.assert_allclose(found, point.losses(point.theta), rtol=1e-9)


PATH = torch.tensor([[4.0, 1.0], [3.0, -2.0], [2.0, 0.5], [0.5, 0.25], [0.0, 0.0]], dtype=torch.float64)


def planar(n=60):
    """A path in a plane of n dimensions that passes far from zero."""
    basis = torch.linalg.qr(draws(n, 2, name="basis"))[0].T
    return 10 + PATH @ basis, basis


@pytest.mark.parametrize("through", ["last", "mean"])
def test_the_plane_of_a_planar_trajectory_is_recovered_exactly(through):
    points, basis = planar()
    risk = toy(points[-1])
    axes = trajectory_axes(risk, list(points), through=through)
    assert max(axes.attributes["off_plane"]) < 1e-12
    assert sum(axes.attributes["explained_variance_ratio"]) == pytest.approx(1, abs=1e-14)
    for vector in axes.vectors:
        assert float((basis @ vector).norm()) == pytest.approx(1, abs=1e-12)  # within the plane
    np.testing.assert_allclose(axes.norms, 1, rtol=1e-14)
    assert abs(axes.cosine) < 1e-14
    assert (axes.origin is None) == (through == "last")
    for mark, row, point in zip(axes.marks, axes.attributes["path"], points):
        assert list(mark[:2]) == row
        assert float((at(risk, axes, row) - point).norm()) < 1e-12


@pytest.mark.parametrize("through", ["last", "mean"])
@pytest.mark.parametrize("num", [1, 2])
def test_components_and_explained_variance_against_a_singular_value_decomposition(through, num, monkeypatch):
    monkeypatch.setattr(anchors, "BLOCK", 7)  # many blocks
    points = (torch.linspace(1, 0, 6, dtype=torch.float64)[:, None] * 3 + 1) * draws(6, 50, name="trajectory")
    axes = trajectory_axes(toy(torch.zeros(50)), list(points), num=num, through=through)
    origin = points[-1] if through == "last" else points.mean(0)
    differences = (points - origin).numpy()
    _, values, rows = np.linalg.svd(differences, full_matrices=False)
    np.testing.assert_allclose(
        axes.attributes["explained_variance_ratio"], values[:num] ** 2 / (values**2).sum(), rtol=1e-12
    )
    for vector, row in zip(axes.vectors, rows):
        assert abs(vector.numpy() @ row) == pytest.approx(1, abs=1e-12)
    path = differences @ rows[:num].T
    np.testing.assert_allclose(np.abs(axes.attributes["path"]), np.abs(path), atol=1e-12)
    np.testing.assert_allclose(
        axes.attributes["off_plane"], np.linalg.norm(differences - path @ rows[:num], axis=1), atol=1e-12
    )
    farthest = np.abs(path).argmax(0)
    assert all(np.asarray(axes.attributes["path"])[farthest, range(num)] > 0)
    torch.testing.assert_close(axes.origin, origin)


def test_checkpoints_are_read_by_the_names_of_the_parameters():
    risk, other = net_risk(0, params="weight"), net_risk(1)
    named = {name: t.clone() for name, t in other.layout.named(other.theta).items()}
    state = {"norm.running_mean": torch.zeros(4), **dict(reversed(named.items()))}
    stored = Checkpoint(Path("b.pt"), state, None, "b", "torch")
    point = point_of(risk, stored)
    assert (point.label, point.sha256) == ("b.pt", "b")
    for name, tensor in risk.layout.named(point.theta).items():
        assert tensor.equal(other.layout.named(other.theta)[name])


# ---- derivatives --------------------------------------------------------------------------------------------------


def test_the_slope_along_a_gradient_is_its_norm_times_the_length():
    risk = net_risk()
    for lane in ("tail", "all"):
        axes = gradient_axes(risk, lane, length=0.3)
        g = axes.attributes["gradient_norms"][0]
        assert axes.norms[0] == pytest.approx(0.3, rel=1e-14)
        assert axes.attributes["slope_per_unit"][0] == pytest.approx(g * 0.3, rel=1e-12)
        h = 1e-4
        line = measure_surface(risk, lane, directions=axes.vectors, x=[-h, h]).loss[0, :, 0]
        assert float(line[1] - line[0]) / (2 * h) == pytest.approx(g * 0.3, rel=1e-6)


def test_the_plane_of_two_gradients():
    def losses(t):
        return torch.stack([3 * t[0], t[0] + 2 * t[1]])

    axes = gradient_axes(toy([1.0, 1.0], losses), "0,1", length=2)
    assert axes.vectors[0].tolist() == [2, 0]
    torch.testing.assert_close(axes.vectors[1], torch.tensor([0.0, 2.0], dtype=torch.float64))
    assert axes.attributes["gradient_cosine"] == pytest.approx(1 / math.sqrt(5))
    assert axes.attributes["slope_per_unit"] == pytest.approx([6, 4])
    assert axes.attributes["gradient_norms"] == pytest.approx([3, math.sqrt(5)])


def test_lengths_are_tenths_of_the_weights_by_default():
    risk = net_risk()
    tenth = 0.1 * float(risk.theta.norm())
    assert gradient_axes(risk, "all").norms[0] == pytest.approx(tenth)
    assert eigen_axes(risk, "all").norms == pytest.approx([tenth] * 2)
    assert gradient_axes(toy([0.0], lambda t: t), "all").norms == (1.0,)


@pytest.mark.parametrize("lane", ["tail", "2", "all"])
def test_the_curvature_along_eigen_axes_is_the_eigenvalues(lane):
    risk = net_risk()
    axes = eigen_axes(risk, lane, length=0.5)
    theirs = extreme_directions(risk, lane)
    (row,) = torch.tensor(list(axes.recipe["lanes"].values()), dtype=torch.float64)
    for end, vector, expected in zip(("min", "max"), axes.vectors, (theirs.v_min, theirs.v_max)):
        value, residual = axes.attributes[f"lambda_{end}"], axes.attributes[f"lambda_{end}_residual"]
        assert (vector / 0.5).equal(expected) or (vector / -0.5).equal(expected)  # the spectrum's own vectors
        product = risk.hvps(risk.theta, row[None], vector[None])[0]
        assert abs(float(vector @ product) - 0.25 * value) <= 0.25 * residual + 1e-12
        assert float((product - value * vector).norm()) <= 0.5 * residual * 1.01 + 1e-10
        slope = float(risk.gradients(risk.theta, row[None])[0] @ vector) / 0.5
        assert slope < 0
        assert slope == pytest.approx(axes.attributes[f"slope_along_v_{end}"])
    assert abs(axes.cosine) < 1e-6


def test_eigenvectors_of_a_saddle_are_turned_the_same_way_whatever_the_start():
    risk = toy([0.0, 0.0, 0.0], lambda t: (2 * t[0] ** 2 - t[1] ** 2 + 0.5 * t[2] ** 2 + t[1])[None])
    for seed in range(4):
        v_min, v_max = eigen_axes(risk, "all", length=1, seed=seed).vectors
        torch.testing.assert_close(v_min, torch.tensor([0.0, -1, 0], dtype=torch.float64))  # downhill
        torch.testing.assert_close(v_max, torch.tensor([1.0, 0, 0], dtype=torch.float64))


def test_one_end_is_a_line_and_one_eigenvalue_still_a_plane():
    risk = toy([1.0, 2.0, 3.0])
    assert abs(eigen_axes(risk, "all").cosine) < 1e-12
    line = eigen_axes(toy([0.0, 0.0], lambda t: (t[0] ** 2 - t[1] ** 2)[None]), "all", ends="max", length=1)
    assert len(line.vectors) == len(line.labels) == 1
    assert line.vectors[0].abs().tolist() == pytest.approx([1, 0], abs=1e-9)


# ---- what a result stores -----------------------------------------------------------------------------------------


def test_a_record_is_json():
    risk, *others = (net_risk(seed) for seed in range(3))
    for axes in (
        random_axes(risk),
        between_axes(risk, others[0]),
        three_point_axes(risk, *others),
        trajectory_axes(risk, [*others, risk]),
        gradient_axes(risk, "head,tail"),
        eigen_axes(risk, "tail"),
    ):
        record = axes.record()
        assert json.loads(json.dumps(record, allow_nan=False)) == json.loads(json.dumps(record))
        assert record["direction_norms"] == pytest.approx([float(v.norm()) for v in axes.vectors])
        assert record["recipe"]["kind"] == record["axes_kind"] == axes.kind


# ---- refusals -----------------------------------------------------------------------------------------------------


def one(*shape, value=1.0):
    return torch.full(shape, value, dtype=torch.float64)


REFUSALS = {
    "unknown norm": (lambda r: random_axes(r, normalization="filters"), "'filters'.*did you mean 'filter'"),
    "unknown treatment": (lambda r: random_axes(r, one_dimensional="zeros"), "'zeros'.*did you mean 'zero'"),
    "three random": (lambda r: random_axes(r, num=3), "expected 1 direction.*got 3"),
    "other length": (lambda r: between_axes(r, one(3)), r"expected weights of shape \(4,\), got \(3,\)"),
    "other network": (lambda r: between_axes(r, net_risk()), "different parameters"),
    "the same": (lambda r: between_axes(r, r.theta), "has the same weights"),
    "two of three the same": (lambda r: three_point_axes(r, r.theta, one(4)), "has the same weights"),
    "three on a line": (lambda r: three_point_axes(r, r.theta + 1, r.theta + 2), "parallel"),
    "short trajectory": (lambda r: trajectory_axes(r, [one(4), r.theta]), "at least 3 checkpoints, got 2"),
    "trajectory on a line": (
        lambda r: trajectory_axes(r, [r.theta + 2, r.theta + 1, r.theta]),
        "span 1 direction.*least 2",
    ),
    "trajectory that stands": (lambda r: trajectory_axes(r, [r.theta] * 3), "span 0 direction"),
    "unknown origin": (lambda r: trajectory_axes(r, [r.theta] * 3, through="first"), "'first'"),
    "zero gradient": (lambda r: gradient_axes(toy([0.0, 0.0]), "all"), "lane 'all'.*norm 0"),
    "three gradients": (lambda r: gradient_axes(net_risk(), "classes"), "got 3"),
    "negative length": (lambda r: gradient_axes(r, "all", length=-1), "positive length.*got -1"),
    "two lanes": (lambda r: eigen_axes(net_risk(), "head,tail"), "expected one lane, got 2: head, tail"),
    "unknown end": (lambda r: eigen_axes(r, "all", ends="low"), "'low'"),
    "unknown lane": (lambda r: eigen_axes(r, "tial"), "'tial'"),
    "missing parameter": (
        lambda r: between_axes(r, Checkpoint(Path("c.pt"), {"w": one(4)}, None, "", "")),
        "c.pt holds another architecture: parameter 'theta' is missing",
    ),
    "no label": (lambda r: Axes((one(4),), "random", "", (), {}), "a label each, got 1 and 0"),
    "unequal": (lambda r: Axes((one(4), one(3)), "random", "", ("a", "b"), {}), r"one length.*\(3,\), \(4,\)"),
    "not finite": (lambda r: Axes((one(4, value=math.nan),), "random", "", ("a",), {}), "first direction.*not finite"),
    "zero": (lambda r: Axes((one(4), one(4, value=0)), "random", "", ("a", "b"), {}), "second direction.*is zero"),
    "unknown recipe": (lambda r: axes_from_recipe(r, {"kind": "randm"}), "'randm'.*did you mean 'random'"),
}


@pytest.mark.parametrize("case", list(REFUSALS))
def test_refusals_are_one_line_that_names_the_offence(case):
    call, message = REFUSALS[case]
    with pytest.raises(LandscapeError, match=message) as error:
        call(toy([1.0, 2.0, 3.0, 5.0]))
    assert "\n" not in str(error.value)


def test_nothing_changes_the_risk_or_the_random_state():
    risk, *others = (net_risk(seed) for seed in range(3))
    before, state = risk.theta.clone(), torch.get_rng_state()
    random_axes(risk, normalization="model", one_dimensional="scale")
    trajectory_axes(risk, [*others, risk])
    gradient_axes(risk, "all")
    eigen_axes(risk, "all")
    assert risk.theta.equal(before)
    assert torch.get_rng_state().equal(state)
    assert orthogonal_to(one(4), torch.arange(4.0)).dtype == torch.float64
