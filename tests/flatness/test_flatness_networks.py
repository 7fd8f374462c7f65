"""Measures of networks against explicit Hessians and gradients of single examples, and what they must not depend on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from flatness_cases import COUNTS, data, filled, network, normal, per_example_gradients, risk_of, study
from torch import nn
from torch.func import functional_call

from landscape.errors import LandscapeError
from landscape.flatness import MEASURES
from landscape.flatness.slopes import slopes_along
from landscape.models import NormedLinear
from landscape.perturbation import worst_case
from landscape.randomness import stream
from landscape.risk import ModelRisk
from landscape.risk.features import features_and_logits
from landscape.risk.normalised import logit_normalised

LENGTHS = {"num_pairs": 3, "ascent_steps": 3, "sigma": 0.05, "rho_linf": 0.01, "adaptive_rho_linf": 0.01}


def measured(name, risk=None, lanes="classes", **options):
    return MEASURES[name].function(study(risk_of() if risk is None else risk, lanes, **options))


def class_means(values, labels):
    return np.array([values[labels == c].mean() for c in range(len(COUNTS))])


def class_errors(values, labels):
    return np.array([values[labels == c].std(ddof=1) / math.sqrt((labels == c).sum()) for c in range(len(COUNTS))])


# ---- relative flatness --------------------------------------------------------------------------------------------


def explicit_relative_flatness(model, head, inputs, labels):
    """sum_{s, s'} <w_s, w_s'> Tr H_{s, s'} with the Hessian of the mean loss by nested automatic differentiation."""
    named = {name: p.detach() for name, p in model.named_parameters()}

    def loss(weight):
        logits = functional_call(model, {**named, f"{head}.weight": weight}, (inputs,))
        return nn.functional.cross_entropy(logits, labels)

    w = named[f"{head}.weight"]
    hessian = torch.func.jacrev(torch.func.grad(loss))(w)  # (C, d, C, d)
    return float(((w @ w.T) * hessian.diagonal(dim1=1, dim2=3).sum(-1)).sum())


@pytest.mark.parametrize("scale", [1.0, 0.1, 6.0])
@pytest.mark.parametrize("bias", [True, False])
def test_relative_flatness_is_that_of_the_explicit_hessian(scale, bias):
    model = network(bias=bias)
    with torch.no_grad():
        model[2].weight *= scale
    inputs, labels = data()
    found = measured("relative_flatness", risk_of(model), "classes,all")
    for c in range(len(COUNTS)):
        exact = explicit_relative_flatness(model, "2", inputs[labels == c], labels[labels == c])
        assert found.value[c] == pytest.approx(exact, rel=1e-10)
    assert found.value[-1] == pytest.approx(explicit_relative_flatness(model, "2", inputs, labels), rel=1e-10)


def test_relative_flatness_keeps_its_digits_where_the_network_is_certain():
    """p = 1 to rounding: the difference of squares would be noise."""
    head = nn.Linear(1, 2, bias=False).double()
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[30.0], [-30.0]]))
    risk = ModelRisk(head, (torch.ones(2, 1).double(), torch.tensor([0, 1])))
    p = math.exp(-60)
    assert measured("relative_flatness", risk).value == pytest.approx([60**2 * p] * 2, rel=1e-10)


class Scaled(nn.Module):
    def __init__(self, twice=False):
        super().__init__()
        self.head, self.twice = nn.Linear(5, 3), twice

    def forward(self, x):
        return self.head(x) + self.head(-x) if self.twice else 4 * self.head(x)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.Linear(5, 7), nn.Tanh(), NormedLinear(7, 3)), "cosine head '2'"),
        (Scaled(), "linear layer 'head'"),
        (Scaled(twice=True), "linear layer 'head'"),
    ],
)
def test_a_classifier_without_a_closed_form_is_refused_with_the_reason(model, reason):
    found = measured("relative_flatness", risk_of(filled(model)))
    assert np.isnan(found.value).all()
    assert reason in str(found.attributes["missing"])


def test_features_leave_no_hook_behind():
    risk = risk_of()
    list(features_and_logits(risk))
    with pytest.raises(LandscapeError, match="needs logits"):
        list(features_and_logits(risk_of(filled(Scaled()))))
    assert not any(module._forward_hooks for module in risk._network.module.modules())


def test_features_are_what_enters_the_head():
    model = network()
    inputs, labels = data()
    (rows, features, logits), *_ = features_and_logits(risk_of(model))
    order = torch.argsort(labels, stable=True)
    assert rows == slice(0, len(labels))
    torch.testing.assert_close(features, model[:2](inputs[order]), rtol=1e-14, atol=0)
    torch.testing.assert_close(logits, model(inputs[order]), rtol=1e-14, atol=0)


# ---- slopes of single examples --------------------------------------------------------------------------------------


def test_fisher_rao_norm_and_radial_slope_are_those_of_explicit_gradients():
    model = network()
    gradients, theta, labels = per_example_gradients(model)
    slopes, labels = (gradients @ theta).detach().numpy(), labels.numpy()
    for name, values in (("radial_slope", slopes), ("fisher_rao_norm", slopes**2)):
        found = measured(name, risk_of(model))
        np.testing.assert_allclose(found.value, class_means(values, labels), rtol=1e-10)
        np.testing.assert_allclose(found.stderr, class_errors(values, labels), rtol=1e-10)


def test_radial_slope_is_the_gradient_along_the_weights():
    risk = risk_of()
    found = measured("radial_slope", risk, "classes,all")
    lanes = study(risk, "classes,all").lanes
    np.testing.assert_allclose(found.value, risk.gradients(risk.theta, lanes.weights) @ risk.theta, rtol=1e-12)


def test_fisher_rao_norm_of_a_network_without_biases_is_that_of_its_logits():
    """Homogeneous of degree L + 1 in the weights: w . grad l = (L + 1) dl/df . f."""
    model = network(nn.ReLU, bias=False)
    inputs, labels = data()
    logits = model(inputs).detach()
    inner = ((logits.softmax(1) - nn.functional.one_hot(labels, 3)) * logits).sum(1).numpy()
    found = measured("fisher_rao_norm", risk_of(model))
    np.testing.assert_allclose(found.value, class_means((2 * inner) ** 2, labels.numpy()), rtol=1e-10)


class NoForwardDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, slope):
        return slope * (1 - ctx.saved_tensors[0].tanh() ** 2)


class OwnTanh(nn.Module):
    def forward(self, x):
        return NoForwardDerivative.apply(x)


def test_an_operation_without_a_forward_derivative_is_differentiated_backwards():
    plain, own = risk_of(network()), risk_of(network(OwnTanh))
    direction = normal(len(plain.theta), name="direction")
    torch.testing.assert_close(slopes_along(own, direction), slopes_along(plain, direction), rtol=1e-12, atol=1e-14)


def test_several_draws_of_an_image_are_one_image():
    inputs, labels = data()
    twice = ModelRisk(network(), (inputs.repeat_interleave(2, 0), labels.repeat_interleave(2)), draws_per_example=2)
    for name in ("fisher_rao_norm", "relative_flatness", "radial_slope"):
        once, drawn = measured(name, risk_of()), measured(name, twice)
        np.testing.assert_allclose(drawn.value, once.value, rtol=1e-12)
        np.testing.assert_allclose(drawn.stderr, once.stderr, rtol=1e-12)


def test_an_image_is_the_mean_of_its_draws_not_the_first_of_them():
    inputs, labels = data()
    drawn = inputs.repeat_interleave(2, 0) + 0.3 * normal(2 * len(labels), 5, name="jitter")
    twice = ModelRisk(network(), (drawn, labels.repeat_interleave(2)), draws_per_example=2)
    images = slopes_along(twice, twice.theta).reshape(-1, 2).mean(1).numpy()
    found = measured("radial_slope", twice)
    np.testing.assert_allclose(found.value, class_means(images, labels.sort().values.numpy()), rtol=1e-12)
    np.testing.assert_allclose(found.stderr, class_errors(images, labels.sort().values.numpy()), rtol=1e-12)


def test_lanes_pool_means_and_errors_of_their_classes():
    """value = sum w_c x_c, variance = sum w_c^2 s_c^2 / n_c; a class of one image has no error."""
    risk = risk_of()
    weights = np.array([0.5, -0.25, 0.75])
    classes, mixed = measured("fisher_rao_norm", risk), measured("fisher_rao_norm", risk, {"mix": weights})
    np.testing.assert_allclose(mixed.value, [weights @ classes.value], rtol=1e-12)
    np.testing.assert_allclose(mixed.stderr, [math.sqrt(weights**2 @ classes.stderr**2)], rtol=1e-12)
    single = risk.restricted(torch.tensor([0, 1, 8]))
    found = measured("fisher_rao_norm", single, "0,1")
    assert np.isfinite(found.value).all()
    assert np.isnan(found.stderr).tolist() == [False, True]


# ---- m-sharpness --------------------------------------------------------------------------------------------------


def linear_loss(logits, labels):
    """Linear in the weights of a linear model, so that a worst case is rho times a gradient norm."""
    return logits.gather(1, labels[:, None])[:, 0] * (1 + labels) - logits.sum(1) / 3


def linear_risk(**options):
    return ModelRisk(filled(nn.Linear(5, 3)), data(), loss=linear_loss, **options)


def test_m_sharpness_is_the_mean_worst_case_of_disjoint_batches():
    risk, rho = linear_risk(), 0.3
    found = measured("m_sharpness", risk, "classes,all", rho=rho, batch_size=2, max_batches=100)
    point = risk.theta.clone().requires_grad_()
    losses = risk.per_example(point, slice(0, sum(COUNTS)))
    gradients = torch.stack([torch.autograd.grad(x, point, retain_graph=True)[0] for x in losses])
    labels = risk.labels
    for i, name in enumerate(("0", "1", "2", "all")):
        rows = torch.nonzero(labels == i)[:, 0] if i < 3 else torch.arange(len(labels))
        rows = rows[torch.randperm(len(rows), generator=stream(0, f"flatness/batches/{name}"))]
        whole = rows[: len(rows) // 2 * 2].reshape(-1, 2)
        exact = rho * gradients[whole].mean(1).norm(dim=1)
        assert found.value[i] == pytest.approx(float(exact.mean()), rel=1e-10)
        assert found.more["m_sharpness_num_batches"][i] == len(whole)
        if len(whole) > 1:
            assert found.stderr[i] == pytest.approx(float(exact.std() / math.sqrt(len(whole))), rel=1e-10)
        else:
            assert math.isnan(found.stderr[i])


def test_m_of_all_examples_is_the_worst_case():
    risk = risk_of()
    options = {"ascent_steps": 4, "rho": 0.2}
    for lane, num in (("0", 8), ("1", 5), ("2", 3), ("all", 16)):
        for average in ("examples", "classes"):
            full = measured("worst_case_increase", risk, lane, group_average=average, **options)
            batch = measured("m_sharpness", risk, lane, group_average=average, batch_size=num, **options)
            assert batch.value[0] == pytest.approx(full.value[0], rel=1e-10)
            assert batch.more["m_sharpness_num_batches"][0] == 1


def test_smaller_batches_have_larger_worst_cases():
    """Batches of 2m are pairs of batches of m, and the norm of a mean is at most the mean of the norms."""
    risk = linear_risk()
    values = [measured("m_sharpness", risk, "0", batch_size=m, max_batches=100).value[0] for m in (1, 2, 4, 8)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 1.1 * values[-1]


def test_one_m_serves_all_lanes_and_a_smaller_class_is_one_batch_of_its_own_size():
    default = measured("m_sharpness", lanes="classes,all", ascent_steps=1)
    assert default.attributes["batch_size"] == min(COUNTS)
    assert default.more["m_sharpness_batch_size"].tolist() == [3, 3, 3, 3]
    assert default.more["m_sharpness_num_batches"].tolist() == [2, 1, 1, 5]
    given = measured("m_sharpness", lanes="classes,all", ascent_steps=1, batch_size=4, max_batches=2)
    assert given.more["m_sharpness_batch_size"].tolist() == [4, 4, 3, 4]
    assert given.more["m_sharpness_num_batches"].tolist() == [2, 1, 1, 2]


def test_a_batch_weighs_its_examples_as_the_lane_does():
    """Equal classes, one of which has twice the examples in a batch of all: its examples count half."""
    inputs, labels = data()
    risk = ModelRisk(filled(nn.Linear(5, 3)), (inputs, labels), loss=linear_loss)
    row = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    found = measured("m_sharpness", risk, {"mix": row.tolist()}, batch_size=16, rho=0.4)
    assert found.value[0] == pytest.approx(0.4 * float(risk.gradients(risk.theta, row[None]).norm()), rel=1e-10)


def test_a_lane_with_a_negative_weight_has_no_batches():
    assert np.isnan(measured("m_sharpness", lanes={"difference": [1.0, -1.0, 0.0]}).value).all()


# ---- what a measure must not depend on ------------------------------------------------------------------------------


def moved(model, factor):
    """The same function: the first layer times a factor, the second divided by it."""
    with torch.no_grad():
        model[0].weight *= factor
        model[0].bias *= factor
        model[2].weight /= factor
    return model


INVARIANT_TO_LAYERS = {
    "loss_radius",
    "radial_slope",
    "fisher_rao_norm",
    "relative_flatness",
    "filter_relative_increase",
    "adaptive_mean_increase",
    "normalised_mean_increase",
    "adaptive_one_step_increase",
    "adaptive_worst_case_increase",
    "adaptive_worst_case_linf_increase",
    "normalised_worst_case_increase",
}


@pytest.mark.parametrize("name", MEASURES)
def test_adaptive_measures_do_not_see_a_rescaling_of_layers_and_the_others_do(name):
    plain, other = (risk_of(model) for model in (network(nn.ReLU), moved(network(nn.ReLU), 4.0)))
    torch.testing.assert_close(plain.losses(plain.theta), other.losses(other.theta), rtol=1e-12, atol=0)
    a, b = (measured(name, risk, **LENGTHS).value for risk in (plain, other))
    if name in INVARIANT_TO_LAYERS:
        np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-12)
    else:
        assert (abs(b - a) > 0.02 * abs(a)).all()


@pytest.mark.parametrize("name", MEASURES)
def test_normalised_measures_do_not_see_the_scale_of_the_logits_and_the_others_do(name):
    model = network(nn.ReLU)
    with torch.no_grad():
        model[2].weight *= 3
        model[2].bias *= 3
    a, b = (measured(name, risk, **LENGTHS).value for risk in (risk_of(network(nn.ReLU)), risk_of(model)))
    if name.startswith("normalised"):
        np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-12)
    else:
        assert (abs(b - a) > 0.02 * abs(a)).all()


def test_normalised_loss_has_unit_logits_of_zero_mean():
    model = network()
    inputs, labels = data()
    logits = model(inputs)
    unit = torch.stack([(z - z.mean()) / ((z - z.mean()) ** 2).sum().sqrt() for z in logits])
    exact = nn.functional.cross_entropy(unit, labels, reduction="none").detach().numpy()
    risk = risk_of(model)
    found = logit_normalised(risk)
    np.testing.assert_allclose(found.losses(found.theta), class_means(exact, labels.numpy()), rtol=1e-12)
    assert (found.attributes["objective"], risk.attributes["objective"]) == ("ce of normalised logits", "ce")
    assert risk.loss_name == "ce"


def test_normalised_worst_case_is_the_search_on_the_normalised_loss():
    risk = logit_normalised(risk_of())
    found = measured("normalised_worst_case_increase", adaptive_rho=0.3, ascent_steps=2)
    row = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    best, _ = worst_case(risk, row, 0.3, 2, stream(0, "x"), scale=risk.theta.abs())
    assert found.value[0] == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("head", [nn.Linear(7, 3), NormedLinear(7, 3)], ids=["linear", "cosine"])
def test_every_filter_of_a_network_lies_within_its_own_ball(head, monkeypatch):
    """Filters along dimension 0, or 1 for a cosine head; biases stay."""
    risk = risk_of(filled(nn.Sequential(nn.Linear(5, 7), nn.Tanh(), head)))
    seen = []
    losses = risk.losses
    monkeypatch.setattr(risk, "losses", lambda theta, classes=None: seen.append(theta) or losses(theta, classes))
    shares = {}
    for placement in ("sphere", "ball"):
        seen.clear()
        measured("filter_relative_increase", risk, placement=placement, num_pairs=2, relative_radius=0.2)
        moved_by = risk.layout.named(seen[1] - risk.theta)
        weights = risk.layout.named(risk.theta)
        norms = {n: (moved_by[n].norm(dim=1 - d), w.norm(dim=1 - d)) for n, d, w in rows_of(risk, weights)}
        shares[placement] = torch.cat([e / w for e, w in norms.values()])
        assert not any(bool(moved_by[n].any()) for n in weights if n.endswith("bias"))
    torch.testing.assert_close(shares["sphere"], torch.full_like(shares["sphere"], 0.2), rtol=1e-5, atol=0)
    assert bool((shares["ball"] < 0.2).all())
    assert len(shares["ball"].unique()) == 10


def rows_of(risk, weights):
    return [(n, d, weights[n]) for n, d in zip(risk.layout.names, risk.layout.filter_dims) if weights[n].dim() > 1]
