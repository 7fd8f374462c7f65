"""Surfaces against functions known everywhere, directions against their definition, networks left as they were."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from landscape.errors import LandscapeError
from landscape.losses import build_loss
from landscape.models import NormedLinear
from landscape.randomness import stream
from landscape.results import Journal, load_results, save_results, validate
from landscape.risk import AnalyticRisk, ModelRisk
from landscape.spectrum import extreme_directions
from landscape.surface import between, cosine, measure_surface, orthogonal_to, random_directions

E1, E2 = torch.eye(2, dtype=torch.float64)
X = np.array([-1.0, -0.25, 0.5, 2.0, 2.5])  # five columns, three rows, neither symmetric nor equidistant
Y = np.array([-0.5, 0.0, 3.0])


def asymmetric(a, b):
    """Told apart from itself under every exchange or reflection of the axes."""
    return a**2 + 10 * b + a * b + b**3


def toy(dtype=torch.float64, **options):
    def losses(t):
        return torch.stack([asymmetric(t[0], t[1]), torch.exp(t[0]) - 2 * t[1]])

    return AnalyticRisk(losses, torch.zeros(2, dtype=dtype), **options)


def exact(x=X, y=Y):
    """(beta, alpha, class)"""
    b, a = np.meshgrid(y, x, indexing="ij")
    return np.stack([asymmetric(a, b), np.exp(a) - 2 * b], -1)


def labels(num=40):
    return torch.arange(num) * 7 % 10 % 3  # classes of 16, 12 and 12 in mixed order


def images(num=40, channels=1):
    return torch.randn(num, channels, 4, 4, generator=stream(0, "surface/images")) + labels(num)[:, None, None, None]


class Net(nn.Module):
    """A convolution, BatchNorm, a smooth activation, a linear layer and a cosine head."""

    def __init__(self, seed=0):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.hidden = nn.Linear(16, 6)
        self.head = NormedLinear(6, 3)
        generator = stream(seed, "surface/net")
        for parameter in self.parameters():
            parameter.data.normal_(generator=generator).mul_(
                torch.linspace(0.2, 1.8, parameter.shape[0]).view(-1, *[1] * (parameter.dim() - 1))
            )
        self.train()
        with torch.no_grad():
            for _ in range(40):
                self(images())
        self.eval()

    def forward(self, x):
        x = torch.tanh(self.norm(self.conv(x))).flatten(1)
        return 4 * self.head(torch.tanh(self.hidden(x)))


def risk_of(model=None, **options):
    return ModelRisk(model or Net(), (images(), labels()), **options)


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


# ---- exact values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_plane_of_a_known_function_is_exact_through_saving_and_loading(tmp_path, dtype, tolerance):
    result = measure_surface(toy(dtype), "classes", kind="plane", directions=[E1, E2], x=X, y=Y)
    assert result.loss.dims == ("pair", "beta", "alpha", "lane")
    loaded = load_results(save_results({"surface": result}, tmp_path / "r.nc"))["surface"].to_dataset()
    for dataset in (result, loaded):
        validate("surface", dataset)
        np.testing.assert_allclose(dataset.loss[0], exact(), rtol=tolerance, atol=tolerance)
        np.testing.assert_array_equal(dataset.alpha, X)
        np.testing.assert_array_equal(dataset.beta, Y)
        assert bool(dataset.done.all())
        corner = dataset.loss.sel(pair=0, alpha=2.5, beta=-0.5, lane="0")
        assert float(corner) == pytest.approx(asymmetric(2.5, -0.5), rel=tolerance)
    np.testing.assert_array_equal(loaded.loss, result.loss)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_line_of_a_known_function_is_exact_through_saving_and_loading(tmp_path, dtype, tolerance):
    result = measure_surface(toy(dtype), "classes", directions=[E1 - 2 * E2], x=X)
    loaded = load_results(save_results({"surface_line": result}, tmp_path / "r.nc"))["surface_line"].to_dataset()
    expected = np.stack([asymmetric(X, -2 * X), np.exp(X) + 4 * X], -1)
    for dataset in (result, loaded):
        validate("surface_line", dataset)
        assert dataset.loss.dims == ("pair", "alpha", "lane")
        np.testing.assert_allclose(dataset.loss[0], expected, rtol=tolerance, atol=tolerance)


def test_a_plane_off_the_axes_and_off_the_origin():
    centre = torch.tensor([0.3, -0.7], dtype=torch.float64)
    risk = AnalyticRisk(lambda t: asymmetric(t[0], t[1])[None], centre)
    d1, d2 = torch.tensor([[1.0, 2.0], [-3.0, 0.5]], dtype=torch.float64)
    result = measure_surface(risk, "all", kind="plane", directions=[d1, d2], x=X, y=Y)
    b, a = np.meshgrid(Y, X, indexing="ij")
    expected = asymmetric(0.3 + a - 3 * b, -0.7 + 2 * a + 0.5 * b)
    np.testing.assert_allclose(result.loss[0, :, :, 0], expected, rtol=1e-12, atol=1e-12)


def test_not_a_number_and_infinity_stay_and_zero_is_a_value(tmp_path):
    def losses(t):
        return torch.stack([torch.sqrt(t[0] + 1) - 1, 1 / (t[0] - 0.5) ** 2, 0 * t[0]])

    risk = AnalyticRisk(losses, torch.zeros(1, dtype=torch.float64), class_counts=[1, 1, 2])
    result = measure_surface(risk, directions=[torch.ones(1)], x=[-2.0, -1.0, 0.0, 0.5])
    loaded = load_results(save_results({"surface_line": result}, tmp_path / "r.nc"))["surface_line"]
    for dataset in (result, loaded):
        by_lane = {lane: dataset.loss.sel(lane=lane).values[0] for lane in ("0", "1", "2", "all")}
        assert np.isnan(by_lane["0"]).tolist() == [True, False, False, False]
        assert by_lane["0"][1:3].tolist() == [-1.0, 0.0]
        assert by_lane["1"][3] == np.inf
        assert by_lane["2"].tolist() == [0.0] * 4
        assert np.isnan(by_lane["all"][0])
        assert by_lane["all"][3] == np.inf
        assert bool(dataset.done.all())


def test_default_coordinates_are_symmetric_with_the_centre_on_the_grid():
    line = measure_surface(toy(), "all", directions=[E1])
    assert line.sizes["alpha"] == 51
    assert float(line.loss.sel(alpha=0.0)[0, 0]) == 0.5
    plane = measure_surface(toy(), "all", kind="plane", directions=[E1, E2])
    assert (plane.sizes["beta"], plane.sizes["alpha"]) == (21, 21)
    assert float(plane.loss.sel(alpha=0.0, beta=0.0)[0, 0]) == 0.5


def test_group_lanes_are_pooled_or_class_means():
    counts, groups = [6, 2], {"head": (0,), "tail": (0, 1)}
    result = measure_surface(toy(class_counts=counts, groups=groups), kind="plane", directions=[E1, E2], x=X, y=Y)
    by_class = result.loss.sel(lane=["0", "1"]).values
    assert list(result.lane.values) == ["0", "1", "head", "tail", "all"]
    np.testing.assert_allclose(result.loss.sel(lane="head"), by_class[..., 0], rtol=1e-14)
    for lane in ("tail", "all"):
        np.testing.assert_allclose(result.loss.sel(lane=lane), by_class @ [0.75, 0.25], rtol=1e-12)
    result = measure_surface(
        toy(class_counts=counts, groups=groups), "tail", directions=[E1], x=X, group_average="classes"
    )
    np.testing.assert_allclose(result.loss[0, :, 0], exact(X, [0.0])[0].mean(1), rtol=1e-12)


def test_own_loss_beside_cross_entropy():
    loss = build_loss("ldam", [10, 5, 2])
    loss.name = "ldam"
    own, plain = risk_of(loss=loss, dtype=torch.float64), risk_of(dtype=torch.float64)
    result, reference = (measure_surface(risk, "classes,all", x=[-0.5, 0.0, 1.0]) for risk in (own, plain))
    np.testing.assert_allclose(result.loss, reference.loss, rtol=1e-12)
    assert "own_loss" not in reference
    np.testing.assert_allclose(result.own_loss[0, 1, :3], own.losses(own.theta), rtol=1e-12)
    assert result.own_loss.dims == result.loss.dims
    assert float(abs(result.own_loss - result.loss).min()) > 1e-3


# ---- repeatability and restoration --------------------------------------------------------------------------------


@pytest.mark.parametrize("batchnorm", ["frozen", "recalibrate"])
def test_repeated_evaluation_has_the_same_bits_and_touches_nothing(batchnorm):
    model = Net().train()
    model.conv.bias.requires_grad_(False)
    model.hidden.weight.grad = torch.ones_like(model.hidden.weight)
    before, flags = state(model), [p.requires_grad for p in model.parameters()]
    risk = risk_of(model)
    theta, random_state = risk.theta.clone(), torch.get_rng_state()
    first = measure_surface(risk, kind="plane", x=[-1, 0, 0.5], y=[-1, 1], batchnorm=batchnorm)
    again = measure_surface(risk, kind="plane", x=[-1, 0, 0.5], y=[-1, 1], batchnorm=batchnorm)
    assert first.identical(again)
    assert risk.theta.equal(theta)
    assert torch.get_rng_state().equal(random_state)
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == flags
    assert model.hidden.weight.grad.equal(torch.ones_like(model.hidden.weight))
    assert all(before[name].equal(tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("batchnorm", ["frozen", "recalibrate"])
def test_everything_is_restored_after_an_exception_in_the_middle(batchnorm, monkeypatch):
    model = Net().train()
    risk = risk_of(model)
    before, theta, random_state = state(model), risk.theta.clone(), torch.get_rng_state()
    expected = measure_surface(risk, x=[-1, 0, 1], batchnorm=batchnorm)
    evaluate, calls = ModelRisk.evaluate, []

    def fail_on_the_second(self, *args):
        calls.append(1)
        values = evaluate(self, *args)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return values

    monkeypatch.setattr(ModelRisk, "evaluate", fail_on_the_second)
    with pytest.raises(RuntimeError, match="out of memory"):
        measure_surface(risk, x=[-1, 0, 1], batchnorm=batchnorm)
    assert len(calls) == 2
    assert model.training
    assert all(before[name].equal(tensor) for name, tensor in model.state_dict().items())
    assert risk.theta.equal(theta)
    assert torch.get_rng_state().equal(random_state)
    assert measure_surface(risk, x=[-1, 0, 1], batchnorm=batchnorm).identical(expected)


@pytest.mark.parametrize("batchnorm", ["frozen", "recalibrate"])
def test_a_point_does_not_depend_on_the_points_around_it(batchnorm):
    risk = risk_of()
    d = random_directions(risk, num=1, seed=0, pair=0)
    many = measure_surface(risk, directions=d, x=[-1.0, -0.5, 0.0, 0.5, 1.0], batchnorm=batchnorm)
    few = measure_surface(risk, directions=d, x=[-0.5, 1.0], batchnorm=batchnorm)
    np.testing.assert_array_equal(many.loss.sel(alpha=[-0.5, 1.0]), few.loss)


def test_a_row_of_a_plane_is_a_line():
    risk = risk_of()
    axes = random_directions(risk, num=2, seed=0, pair=0)
    plane = measure_surface(risk, kind="plane", x=[-1, 0, 1], y=[-1, 0, 2])
    line = measure_surface(risk, directions=axes[:1], x=[-1, 0, 1])
    np.testing.assert_array_equal(plane.loss.sel(beta=0), line.loss)
    assert float(plane.loss.sel(lane="all").std()) > 0


# ---- random directions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pair", range(3))
def test_directions_are_orthogonal_after_all_scaling_and_normalised_filter_by_filter(dtype, pair):
    risk = risk_of(dtype=dtype)
    d1, d2 = random_directions(risk, num=2, seed=0, pair=pair)
    assert abs(cosine(d1, d2)) < 1e-5
    weights = risk.layout.named(risk.theta)
    for d in (risk.layout.named(d1), risk.layout.named(d2)):
        for name, dim in {"conv.weight": 0, "hidden.weight": 0, "head.weight": 1}.items():
            norms = [t.movedim(dim, 0).flatten(1).double().norm(dim=1) for t in (d[name], weights[name])]
            np.testing.assert_allclose(norms[0] / norms[1], 1, rtol=0, atol=1e-5)
            assert len(norms[1]) == {"conv.weight": 4, "hidden.weight": 6, "head.weight": 3}[name]
        for name in ("conv.bias", "norm.weight", "norm.bias", "hidden.bias"):
            assert not d[name].any()


def test_measured_directions_are_those_and_described():
    risk = risk_of()
    result = measure_surface(risk, kind="plane", x=[0, 1], y=[0, 1], num_pairs=2)
    for pair in range(2):
        axes = random_directions(risk, num=2, seed=0, pair=pair)
        corner = risk.losses((risk.theta.double() + axes[0].double() + axes[1].double()).float())
        np.testing.assert_array_equal(result.loss.sel(pair=pair, alpha=1, beta=1)[:3], corner)
        assert result.attrs["direction_norms"][pair] == pytest.approx([float(d.double().norm()) for d in axes])
        assert abs(result.attrs["direction_cosines"][pair]) < 1e-5
    assert "orthogonal after scaling" in result.attrs["normalization"]


def test_pairs_and_seeds_give_nearly_orthogonal_directions():
    """Independent directions of n = 4000 weights have cosines of about n^-1/2; five of these leave no doubt."""
    model = nn.Linear(400, 10)
    risk = ModelRisk(model, (torch.randn(20, 400, generator=stream(0, "x")), torch.arange(20) % 10))
    drawn = {(s, p): random_directions(risk, num=1, seed=s, pair=p)[0] for s in range(2) for p in range(2)}
    for one, d in drawn.items():
        for other, e in drawn.items():
            limit = 1.0 if one == other else 5 / math.sqrt(4000)
            assert abs(cosine(d, e)) <= limit + 1e-9
    assert abs(cosine(drawn[0, 0], torch.ones_like(drawn[0, 0]))) < 5 / math.sqrt(4000)


def test_two_checkpoints_see_the_same_raw_draws_each_with_its_own_filter_norms():
    one, other = risk_of(Net(seed=0)), risk_of(Net(seed=1))
    for axis in range(2):
        d, e = (r.layout.named(random_directions(r, num=2, seed=0, pair=0)[axis]) for r in (one, other))
        for name, dim in {"conv.weight": 0, "hidden.weight": 0, "head.weight": 1}.items():
            units = [nn.functional.normalize(t[name].movedim(dim, 0).flatten(1), dim=1) for t in (d, e)]
            torch.testing.assert_close(units[0], units[1], rtol=1e-4, atol=1e-5)
            assert not torch.allclose(d[name], e[name])


def test_the_first_axis_of_a_plane_is_the_line_of_the_same_pair():
    risk = risk_of()
    line, plane = (random_directions(risk, num=num, seed=3, pair=1) for num in (1, 2))
    assert line[0].equal(plane[0])


def test_orthogonal_to_keeps_the_norm_and_refuses_parallels():
    d, e = torch.randn(2, 50, generator=stream(0, "axes"))
    result = orthogonal_to(d, e)
    assert abs(cosine(result, e)) < 1e-6
    assert float(result.norm()) == pytest.approx(float(d.norm()), rel=1e-6)
    with pytest.raises(LandscapeError, match="parallel"):
        orthogonal_to(-3 * e, e)
    with pytest.raises(LandscapeError, match="zero"):
        orthogonal_to(d, torch.zeros(50))


def test_filters_of_one_weight_still_give_orthogonal_axes():
    """A depthwise 1 x 1 convolution has filters of one weight, in which nothing is orthogonal."""
    model = nn.Sequential(nn.Conv2d(3, 3, 1, groups=3), nn.Flatten(), nn.Linear(48, 3))
    risk = ModelRisk(model, (images(12, 3), labels(12)))
    d1, d2 = random_directions(risk, num=2, seed=0, pair=0)
    assert abs(cosine(d1, d2)) < 1e-5
    assert bool(d1.any())
    assert bool(d2.any())


# ---- between two checkpoints --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_line_between_two_checkpoints_ends_at_both_exactly(dtype):
    models = [Net(seed=0), Net(seed=1)]
    # The statistics belong to the function, not to the weights: the line keeps the first's, so the second shares them.
    for name, statistics in models[0].norm.named_buffers():
        models[1].norm.get_buffer(name).copy_(statistics)
    one, other = (risk_of(model, dtype=dtype) for model in models)
    result = measure_surface(one, "classes", directions=[between(one, other)], x=[-0.5, 0, 0.5, 1])
    tolerance = {"rtol": 0, "atol": 0} if dtype == torch.float32 else {"rtol": 1e-13}
    np.testing.assert_array_equal(result.loss.sel(alpha=0)[0], one.losses(one.theta))
    np.testing.assert_allclose(result.loss.sel(alpha=1)[0], other.losses(other.theta), **tolerance)
    assert abs(result.loss.sel(alpha=1) - result.loss.sel(alpha=0)).min() > 1e-3


def test_different_architectures_have_no_line_between_them():
    other = ModelRisk(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), (images(), labels()))
    with pytest.raises(LandscapeError, match=r"different parameters.*one architecture"):
        between(risk_of(), other)


# ---- eigen-plane --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lane", ["2", "all"])
def test_curvature_of_the_eigen_plane_is_the_eigenvalues(lane):
    """Second differences of a smooth network in float64: d2L / dalpha2 = lambda unit^2, and no mixed term."""
    risk = risk_of(dtype=torch.float64)
    ends = extreme_directions(risk, lane)
    unit = 0.02
    h = [-0.1, 0.0, 0.1]
    result = measure_surface(risk, lane, kind="plane", directions=[unit * ends.v_min, unit * ends.v_max], x=h, y=h)
    loss = result.loss[0, :, :, 0].values  # (beta, alpha)
    scale = (0.1 * unit) ** 2
    along_min = (loss[1, 2] - 2 * loss[1, 1] + loss[1, 0]) / scale
    along_max = (loss[2, 1] - 2 * loss[1, 1] + loss[0, 1]) / scale
    mixed = (loss[2, 2] - loss[2, 0] - loss[0, 2] + loss[0, 0]) / (4 * scale)
    assert ends.lambda_min < -1e-3
    assert along_min == pytest.approx(ends.lambda_min, rel=1e-2)
    assert along_max == pytest.approx(ends.lambda_max, rel=1e-2)
    assert abs(mixed) < 1e-2 * abs(ends.lambda_max)


# ---- BatchNorm ----------------------------------------------------------------------------------------------------


def test_recalibrated_surface_is_finite_different_and_close_to_frozen_at_the_centre():
    risk = risk_of()
    frozen, recalibrated = (
        measure_surface(risk, kind="plane", x=np.linspace(-1, 1, 5), y=np.linspace(-1, 1, 3), batchnorm=policy)
        for policy in ("frozen", "recalibrate")
    )
    for result in (frozen, recalibrated):
        assert np.isfinite(result.loss).all()
    centre = {"alpha": 0.0, "beta": 0.0}
    # The running average over 40 epochs of the same 40 images, momentum 0.1, has forgotten its start to 0.9^40 = 1.5 %.
    np.testing.assert_allclose(recalibrated.loss.sel(centre), frozen.loss.sel(centre), atol=0.05)
    assert float(abs(recalibrated.loss - frozen.loss).max()) > 0.05
    assert frozen.attrs["batchnorm"] == "frozen"
    assert "recalibrated on 40 examples" in recalibrated.attrs["batchnorm"]


def test_recalibration_is_what_training_mode_would_compute():
    risk = risk_of()
    d = random_directions(risk, num=1, seed=0, pair=0)[0]
    result = measure_surface(risk, "classes", directions=[d], x=[0.0, 0.7], batchnorm="recalibrate")
    model = Net()
    for parameter, value in zip(
        model.parameters(), risk.layout.unflatten((risk.theta.double() + 0.7 * d.double()).float())
    ):
        parameter.data.copy_(value)
    torch.optim.swa_utils.update_bn([images()], model)
    with torch.no_grad():
        losses = nn.functional.cross_entropy(model.eval()(images()), labels(), reduction="none")
    expected = [float(losses[labels() == c].double().mean()) for c in range(3)]
    np.testing.assert_allclose(result.loss.sel(alpha=0.7)[0], expected, rtol=1e-5)


def test_recalibration_needs_batchnorm_and_a_known_policy():
    plain = ModelRisk(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), (images(), labels()))
    with pytest.raises(LandscapeError, match="'recalibrate': the model has no BatchNorm"):
        measure_surface(plain, batchnorm="recalibrate")
    with pytest.raises(LandscapeError, match="'recalibrate': this risk is not a network's; use 'frozen'"):
        measure_surface(toy(), batchnorm="recalibrate")
    with pytest.raises(LandscapeError, match="unknown BatchNorm policy 'recalibrated': did you mean 'recalibrate'"):
        measure_surface(risk_of(), batchnorm="recalibrated")


# ---- journal ------------------------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch):
    """A toy risk and the list that grows by one with every evaluation."""
    calls = []
    evaluate = AnalyticRisk.evaluate
    monkeypatch.setattr(AnalyticRisk, "evaluate", lambda self, *a: calls.append(1) or evaluate(self, *a))
    return toy(), calls


def test_an_interrupted_plane_goes_on_at_the_row_where_it_stopped(tmp_path, counted):
    risk, calls = counted
    given = {"kind": "plane", "directions": [E1, E2], "x": X, "y": np.linspace(-1, 1, 5)}
    whole = measure_surface(risk, **given)
    assert len(calls) == 5 * 5

    def stop(done, total, text):
        if done == 3:
            raise KeyboardInterrupt

    journal = Journal(tmp_path / "journal", {"seed": 0})
    with pytest.raises(KeyboardInterrupt):
        measure_surface(risk, journal=journal, progress=stop, **given)
    calls.clear()
    resumed = measure_surface(risk, journal=journal, **given)
    assert len(calls) == (5 - 3) * 5
    assert resumed.identical(whole)
    calls.clear()
    assert measure_surface(risk, journal=journal, **given).identical(whole)
    assert calls == []


def test_a_truncated_row_is_measured_again(tmp_path, counted):
    risk, calls = counted
    given = {"kind": "plane", "directions": [E1, E2], "x": X, "y": Y, "journal": Journal(tmp_path, {"seed": 0})}
    whole = measure_surface(risk, **given)
    damaged = sorted(tmp_path.iterdir())[1]
    damaged.write_bytes(damaged.read_bytes()[:200])
    calls.clear()
    assert measure_surface(risk, **given).identical(whole)
    assert len(calls) == len(X)


def test_progress_counts_rows_and_reaches_its_total():
    seen = []
    measure_surface(toy(), kind="plane", x=X, y=Y, num_pairs=2, progress=lambda *tick: seen.append(tick[:2]))
    assert seen == [(k, 6) for k in range(1, 7)]


# ---- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kind": "volume"}, "unknown kind of surface 'volume'.*line, plane"),
        ({"x": [0.0]}, r"x: expected at least two finite, increasing coordinates, got \[0.0\]"),
        ({"x": [1.0, 0.0]}, "x: expected at least two finite, increasing"),
        ({"x": [0.0, 0.0]}, "x: expected at least two finite, increasing"),
        ({"x": [0.0, math.nan]}, "x: expected at least two finite, increasing"),
        ({"x": "-1:1:5"}, "x: expected .* got '-1:1:5'"),
        ({"x": [[0.0, 1.0]]}, "x: expected"),
        ({"kind": "plane", "y": [0.0, math.inf]}, "y: expected at least two finite, increasing"),
        ({"num_pairs": 0}, "num_pairs: expected at least 1, got 0"),
        ({"directions": [E1, E2]}, r"a line needs 1 direction\(s\), got 2"),
        ({"kind": "plane", "directions": [E1]}, r"a plane needs 2 direction\(s\), got 1"),
        ({"directions": [torch.ones(3)]}, r"expected directions of shape \(2,\), got \(3,\)"),
        ({"directions": [E1 / 0]}, "a direction of the surface is not finite"),
        ({"directions": [0 * E1]}, "a direction of the surface is zero"),
        ({"lanes": "2"}, "unknown lane '2'"),
    ],
)
def test_bad_input_is_refused(given, message):
    with pytest.raises(LandscapeError, match=message):
        measure_surface(toy(), **given)
