"""Ways out along v_min: closed forms, dense eigenvectors, errors over images, and a journal that computes nothing twice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from landscape.errors import LandscapeError
from landscape.randomness import stream
from landscape.results import Journal, load_results, save_results
from landscape.risk import AnalyticRisk, ModelRisk
from landscape.spectrum import extreme_directions
from landscape.surface import escape, measure_escape

GROUPS = {"head": (0,), "tail": (1, 2)}
LENGTHS = [0.25, 0.5, 1.0]


def saddles(t):
    """Class 0 escapes along axis 1, class 1 along axis 2 (down its slope), class 2 nowhere."""
    x, y, z = t
    return torch.stack(
        [
            x**2 - y**2 + 0.5 * y**4,
            2 * x**2 - z**2 + 0.3 * z + 0.25 * z**4 + 0.5 * y**2,
            x**2 + 2 * y**2 + 3 * z**2,
        ]
    )


def toy(dtype=torch.float64):
    return AnalyticRisk(saddles, torch.zeros(3, dtype=dtype), class_counts=[4, 2, 2], groups=GROUPS)


@pytest.fixture(scope="module")
def found():
    return measure_escape(toy(), "classes", x=LENGTHS)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.head = nn.Linear(3, 4), nn.Linear(4, 3)
        for parameter in self.parameters():
            parameter.data.normal_(generator=stream(3, f"escape/net/{tuple(parameter.shape)}"))

    def forward(self, x):
        return self.head(torch.tanh(self.hidden(x)))


LABELS = torch.tensor([0, 1, 2, 0, 1, 0, 0, 1, 0])  # 5, 3 and 1 images in mixed order
IMAGES = torch.randn(9, 3, generator=stream(0, "escape/images")).double() + LABELS[:, None]


def network(**options):
    return ModelRisk(Net().double(), (IMAGES, LABELS), dtype=torch.float64, groups=GROUPS, **options)


def losses_at(risk, theta):
    """Cross-entropy of every image, by an evaluation of our own."""
    parts = dict(zip(risk.layout.names, risk.layout.unflatten(theta)))
    logits = functional_call(Net().double(), parts, (IMAGES,))
    return nn.functional.cross_entropy(logits, LABELS, reduction="none").detach()


# ---- closed form --------------------------------------------------------------------------------------------------


def test_a_known_way_out_is_followed_on_both_sides_and_every_lane_is_read(found):
    assert found.increase.dims == ("lane", "step", "affected_lane")
    assert found.step.values.tolist() == [-1.0, -0.5, -0.25, 0.25, 0.5, 1.0]
    assert found.affected_lane.values.tolist() == ["0", "1", "2", "head", "tail", "all"]
    t = found.step.values
    own, other = -(t**2) + 0.5 * t**4, 0.5 * t**2
    third = 2 * t**2
    expected = np.stack([own, other, third, own, (other + third) / 2, own / 2 + other / 4 + third / 4], -1)
    np.testing.assert_allclose(found.increase.sel(lane="0"), expected, atol=1e-9)
    np.testing.assert_allclose(found.loss.sel(lane="0"), expected, atol=1e-9)


def test_the_sign_goes_down_the_own_slope_and_the_best_step_is_the_best_of_those_walked(found):
    t = found.step.values
    own = -(t**2) - 0.3 * t + 0.25 * t**4  # z = -t: downhill is where z falls
    np.testing.assert_allclose(found.increase.sel(lane="1", affected_lane="1"), own, atol=1e-9)
    one = found.sel(lane="1")
    assert float(one.best_distance) == 1.0
    assert float(one.best_decrease) == pytest.approx(1.05, abs=1e-9)
    assert float(one.slope_along_v) == pytest.approx(-0.3, abs=1e-9)
    assert float(one.lambda_min) == pytest.approx(-2.0, abs=1e-9)
    assert float(one.gradient_norm) == pytest.approx(0.3, abs=1e-12)
    np.testing.assert_allclose(one.increase_at_best, one.increase.sel(step=1.0))


def test_where_nothing_falls_the_best_is_zero_at_zero(found):
    one = found.sel(lane="2")
    assert float(one.best_decrease) == float(one.best_distance) == 0.0
    assert not one.increase_at_best.any()
    assert float(one.lambda_min) == pytest.approx(2.0, abs=1e-9)


def test_the_same_lengths_along_minus_gradient(found):
    t = np.array(LENGTHS)  # the gradient of class 1 is 0.3 along z: the very same direction
    own = -(t**2) - 0.3 * t + 0.25 * t**4
    np.testing.assert_allclose(found.gradient_increase.sel(lane="1", affected_lane="1"), own, atol=1e-9)
    assert bool(found.gradient_increase.sel(lane="0").isnull().all())  # no gradient, no direction
    one = found.sel(lane="1")
    np.testing.assert_allclose(one.gradient_increase_at_best, one.gradient_increase.sel(length=1.0))


def test_an_affordable_step_costs_no_group_more_than_a_tenth_of_what_it_gains():
    def losses(t):  # the followed class falls as t, the other rises as t^4: affordable up to t^3 = 0.1
        return torch.stack([-t[0] - t[0] ** 2, t[0] ** 4 + t[1] ** 2])

    risk = AnalyticRisk(losses, torch.zeros(2, dtype=torch.float64), groups={"a": (0,), "b": (1,)})
    one = measure_escape(risk, "0", x=[0.2, 0.45, 0.6, 1.0]).sel(lane="0")
    assert float(one.best_distance) == 1.0
    assert float(one.affordable_distance) == 0.45  # 0.45^4 = 0.041 of 0.65; at 0.6 it is 0.13 of 0.96
    assert float(one.affordable_decrease) == pytest.approx(0.45 + 0.45**2)
    np.testing.assert_allclose(one.increase_at_affordable, one.increase.sel(step=0.45))


def test_a_unit_is_a_tenth_of_the_weights():
    risk = AnalyticRisk(
        lambda t: (-((t[0] - 30.0) ** 2) + (t[1] - 40.0) ** 2)[None], torch.tensor([30.0, 40.0]).double()
    )
    result = measure_escape(risk, "all", x=[0.1, 2.0])
    assert result.attrs["unit_length"] == pytest.approx(5.0)
    assert float(result.best_decrease[0]) == pytest.approx(100.0)


def test_it_survives_saving(found, tmp_path):
    loaded = load_results(save_results({"escape": found}, tmp_path / "r.nc"))["escape"].to_dataset()
    for name in found.data_vars:
        np.testing.assert_array_equal(loaded[name], found[name])


# ---- networks -----------------------------------------------------------------------------------------------------


def test_a_network_is_walked_along_the_dense_eigenvector_with_paired_errors_over_images():
    risk = network()
    result = measure_escape(risk, [0], x=[0.1, 0.4])
    theta = risk.theta
    rows = LABELS == 0
    hessian = torch.autograd.functional.hessian(
        lambda p: nn.functional.cross_entropy(
            functional_call(Net().double(), dict(zip(risk.layout.names, risk.layout.unflatten(p))), (IMAGES,))[rows],
            LABELS[rows],
        ),
        theta,
    )
    values, vectors = torch.linalg.eigh(hessian)
    assert float(result.lambda_min[0]) == pytest.approx(float(values[0]), abs=1e-6)
    v = vectors[:, 0]
    gradient = risk.gradients(theta, torch.tensor([[1.0, 0.0, 0.0]]).double())[0]
    v = -v if float(gradient @ v) > 0 else v
    unit = 0.1 * float(theta.norm())
    for step in result.step.values:
        change = losses_at(risk, theta + unit * float(step) * v) - losses_at(risk, theta)
        for c, name in enumerate(risk.class_names):
            at = result.sel(step=step, affected_lane=name, lane="0")
            of_class = change[c == LABELS]
            assert float(at.increase) == pytest.approx(float(of_class.mean()), abs=2e-6)
            expected = float(of_class.std() / len(of_class) ** 0.5) if len(of_class) > 1 else np.nan
            assert float(at.increase_stderr) == pytest.approx(expected, abs=2e-6, nan_ok=True)
        tail = result.sel(step=step, lane="0", affected_lane="tail")
        assert np.isnan(tail.increase_stderr)  # class 2 has one image
        head = result.sel(step=step, lane="0", affected_lane="head")
        assert float(head.increase_stderr) == pytest.approx(
            float(result.sel(step=step, lane="0", affected_lane="0").increase_stderr)
        )


def test_the_vector_is_the_spectrum_s_and_nothing_is_changed():
    risk = network()
    before, generator = risk.theta.clone(), torch.get_rng_state()
    first = measure_escape(risk, "tail", x=[0.3], seed=4)
    ends = extreme_directions(risk, "tail", seed=4)
    assert float(first.lambda_min[0]) == ends.lambda_min
    assert float(first.lambda_min_residual[0]) == ends.residual_min
    assert torch.equal(risk.theta, before)
    assert torch.equal(torch.get_rng_state(), generator)
    again = measure_escape(risk, "tail", x=[0.3], seed=4)
    np.testing.assert_array_equal(first.loss, again.loss)


def test_known_directions_are_taken_as_they_are_and_certified_by_one_product(found, monkeypatch):
    monkeypatch.setattr(escape, "find_extremes", lambda *a, **k: 1 / 0)
    axes = torch.eye(3, dtype=torch.float64)
    given = {"0": -2 * axes[1], "1": axes[2], "2": axes[0]}  # of any length, on any side
    again = measure_escape(toy(), "classes", x=LENGTHS, directions=given)
    np.testing.assert_allclose(again.lambda_min, found.lambda_min, atol=1e-9)
    np.testing.assert_allclose(again.best_decrease, found.best_decrease, atol=1e-9)
    tilted = measure_escape(toy(), "0", x=LENGTHS, directions={"0": axes[0] + axes[1]})  # H = diag(2, -2, 0)
    assert (float(tilted.lambda_min[0]), float(tilted.lambda_min_residual[0])) == pytest.approx((0, 2))
    with pytest.raises(ZeroDivisionError):  # what is not known is searched
        measure_escape(toy(), "classes", x=LENGTHS, directions={"0": axes[1]})
    for bad in (torch.zeros(3), torch.ones(2), torch.full((3,), torch.nan)):
        with pytest.raises(LandscapeError, match=r"directions: expected a finite vector of shape \(3,\)"):
            measure_escape(toy(), "0", x=LENGTHS, directions={"0": bad})


def test_another_objective_is_read_beside_plain_cross_entropy():
    result = measure_escape(network(loss="ldam"), [0], x=[0.2])
    risk = network(loss="ldam")
    assert not np.allclose(result.own_increase, result.increase)
    plain = risk.evaluate(risk.theta)["cross_entropy"]
    np.testing.assert_allclose(result.loss_at_weights[:3], plain, rtol=1e-12)


def test_a_journal_keeps_each_lane_and_nothing_is_computed_twice(tmp_path, monkeypatch):
    whole = measure_escape(toy(), "classes", x=LENGTHS)
    journal = Journal(tmp_path, {"what": "escape"})
    measure_escape(toy(), ["0", "1"], x=LENGTHS, journal=journal)
    computed = []
    original = escape.find_extremes
    monkeypatch.setattr(escape, "find_extremes", lambda *a, **k: computed.append(k["name"]) or original(*a, **k))
    ticks = []
    resumed = measure_escape(toy(), "classes", x=LENGTHS, journal=journal, progress=lambda *t: ticks.append(t[:2]))
    assert computed == ["2"]
    assert ticks == [(1, 3), (2, 3), (3, 3)]
    for name in whole.data_vars:
        np.testing.assert_array_equal(resumed[name], whole[name])


def test_a_mixture_is_followed_and_read_beside_the_others():
    result = measure_escape(toy(), {"half": [0.5, 0.5, 0.0]}, x=LENGTHS)
    assert result.affected_lane.values.tolist()[-1] == "half"
    one = result.sel(lane="half")
    mixed = (one.increase.sel(affected_lane="0") + one.increase.sel(affected_lane="1")) / 2
    np.testing.assert_allclose(one.increase.sel(affected_lane="half"), mixed, atol=1e-12)


@pytest.mark.parametrize("x", [[0.0, 1.0], [1.0, 0.5], [], [-1.0], [float("nan")], "far"])
def test_bad_lengths_are_refused(x):
    with pytest.raises(LandscapeError, match="increasing positive lengths"):
        measure_escape(toy(), "0", x=x)
