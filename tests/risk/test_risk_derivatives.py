"""Losses, gradients and Hessian products of a network against closed forms, dense autograd and PyHessian."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import torch
from risk_cases import (
    COUNTS,
    GROUPS,
    dense_hessian,
    digits,
    digits_convnet,
    draw,
    example_weights,
    flat_loss,
    smooth_mlp,
    unit,
)
from torch import nn
from torch.nn import functional

from landscape.losses import LOSSES
from landscape.risk import ModelRisk, choose_lanes

C = len(COUNTS)
POOLED = [n / sum(COUNTS) for n in COUNTS]
LANES = {
    **{f"class {c}": unit(C, c) for c in range(C)},
    "tail": [0, 0, 6 / 9, 3 / 9],
    "tail by class": [0, 0, 0.5, 0.5],
    "all": POOLED,
    "difference": [1.0, -0.5, 0.0, 2.0],
}


@pytest.fixture(scope="module")
def risk():
    return ModelRisk(smooth_mlp(), digits(), groups=GROUPS)


@pytest.fixture(scope="module")
def dense():
    return {name: dense_hessian(smooth_mlp(), *digits(), lane) for name, lane in LANES.items()}


def all_lanes() -> torch.Tensor:
    return torch.tensor(list(LANES.values()), dtype=torch.float64)


# ---- closed form: softmax regression -----------------------------------------------------------------------------


def softmax_regression():
    """Return a linear classifier, inputs, labels, and per class the gradient and Hessian of its mean cross-entropy.

    With z = W x + b and p = softmax(z), the gradient in z is p - e_y and the Hessian diag(p) - p p', so with
    a = (x, 1) the gradient in (W, b) is (p - e_y) a' and the Hessian (diag(p) - p p') kron a a'.
    """
    model = nn.Linear(5, 3).double()
    with torch.no_grad():
        model.weight.copy_(draw(3, 5, name="W"))
        model.bias.copy_(draw(3, name="b"))
    inputs, labels = draw(17, 5, name="x"), torch.tensor([0] * 9 + [1] * 6 + [2] * 2)
    probabilities = torch.softmax(inputs @ model.weight.T + model.bias, 1).detach()
    gradients, hessians = [], []
    for c in range(3):
        rows = labels == c
        x, p = inputs[rows], probabilities[rows]
        error = p - functional.one_hot(labels[rows], 3)
        gradients.append(torch.cat([(error.T @ x).reshape(-1), error.sum(0)]) / len(x))
        inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]  # (N, 3, 3)
        ww = torch.einsum("nij,na,nb->iajb", inner, x, x).reshape(15, 15)
        wb = torch.einsum("nij,na->iaj", inner, x).reshape(15, 3)
        hessians.append(torch.cat([torch.cat([ww, wb], 1), torch.cat([wb.T, inner.sum(0)], 1)], 0) / len(x))
    return model, inputs, labels, torch.stack(gradients), torch.stack(hessians)


def test_softmax_regression_against_its_closed_form():
    model, inputs, labels, gradients, hessians = softmax_regression()
    order = torch.randperm(17, generator=torch.Generator().manual_seed(0))
    risk = ModelRisk(model, (inputs[order], labels[order]), chunk_size=4)
    # Sums of at most 17 products of numbers of order 10: 1e-13 is some hundred units of rounding.
    torch.testing.assert_close(risk.gradients(risk.theta, torch.eye(3)), gradients, rtol=1e-12, atol=1e-13)
    vectors = draw(3, 18, name="v")
    expected = torch.einsum("cij,cj->ci", hessians, vectors)
    torch.testing.assert_close(risk.hvps(risk.theta, torch.eye(3), vectors), expected, rtol=1e-12, atol=1e-13)
    logits = inputs @ model.weight.T + model.bias
    losses = torch.logsumexp(logits, 1) - logits[torch.arange(17), labels]
    means = torch.stack([losses[labels == c].mean() for c in range(3)])
    torch.testing.assert_close(risk.losses(risk.theta), means.detach(), rtol=1e-13, atol=0)
    accuracy = torch.stack([(logits.argmax(1) == labels)[labels == c].double().mean() for c in range(3)])
    torch.testing.assert_close(risk.evaluate(risk.theta)["accuracy"], accuracy)


# ---- dense autograd ----------------------------------------------------------------------------------------------


def test_products_against_the_dense_hessian(risk, dense):
    vectors = draw(len(LANES), len(risk.theta), name="v")
    products = risk.hvps(risk.theta, all_lanes(), vectors)
    for b, name in enumerate(LANES):
        expected = dense[name] @ vectors[b]
        # Rounding of a sum of 119 terms in float64, relative to the largest entry.
        assert (products[b] - expected).abs().max() <= 1e-12 * expected.abs().max(), name


def test_block_products_against_the_dense_hessian(risk, dense):
    names = ["class 0", "class 3", "all"]
    lanes = torch.tensor([LANES[name] for name in names], dtype=torch.float64)
    blocks = torch.eye(len(risk.theta), dtype=torch.float64).expand(3, -1, -1)
    with risk.hessian(risk.theta, lanes) as product:
        whole = product(blocks)
        again = product(blocks)
    assert torch.equal(whole, again)
    for name, matrix in zip(names, whole):
        assert (matrix - dense[name]).abs().max() <= 1e-12 * dense[name].abs().max(), name


def test_gradients_and_losses_against_plain_autograd(risk):
    images, labels = digits()
    gradients = risk.gradients(risk.theta, all_lanes())
    losses = risk.losses(risk.theta)
    for b, lane in enumerate(LANES.values()):
        loss, theta = flat_loss(smooth_mlp(), images, labels, example_weights(labels, lane))
        expected = torch.func.grad(loss)(theta)
        assert (gradients[b] - expected).abs().max() <= 1e-12 * expected.abs().max()
        total = float((torch.tensor(lane, dtype=torch.float64) * losses).sum())
        assert total == pytest.approx(float(loss(theta)), rel=1e-13)


def test_derivatives_away_from_the_checkpoint(risk):
    """Theta is an argument: derivatives at another point are those of the dense Hessian there."""
    images, labels = digits()
    loss, theta = flat_loss(smooth_mlp(), images, labels, example_weights(labels, POOLED))
    moved = theta + 0.3 * draw(len(theta), name="step")
    vector = draw(1, len(theta), name="v")
    lane = torch.tensor([POOLED], dtype=torch.float64)
    expected = torch.func.jacrev(torch.func.grad(loss))(moved) @ vector[0]
    torch.testing.assert_close(risk.hvps(moved, lane, vector)[0], expected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(risk.gradients(moved, lane)[0], torch.func.grad(loss)(moved), rtol=1e-11, atol=1e-13)
    assert float((lane[0] * risk.losses(moved)).sum()) == pytest.approx(float(loss(moved)), rel=1e-13)


@pytest.mark.parametrize("params", ["head", "backbone", r"\.weight$", "^5.bias", "^3"])
def test_a_subset_of_the_parameters_is_a_block_of_the_hessian(dense, params):
    risk = ModelRisk(smooth_mlp(), digits(), params=params)
    named = dict(smooth_mlp().named_parameters())
    wanted = {"head": r"^5\.", "backbone": r"^[0-4]\."}.get(params, params)
    mask = torch.cat([torch.full((p.numel(),), bool(re.search(wanted, name))) for name, p in named.items()])
    assert len(risk.theta) == int(mask.sum())
    assert risk.layout.names == tuple(name for name in named if re.search(wanted, name))
    vectors = draw(1, len(risk.theta), name="v")
    product = risk.hvps(risk.theta, torch.tensor([POOLED], dtype=torch.float64), vectors)[0]
    torch.testing.assert_close(product, dense["all"][mask][:, mask] @ vectors[0], rtol=1e-11, atol=1e-13)


def test_unused_parameters_give_zero_rows():
    class Wasteful(nn.Module):
        def __init__(self):
            super().__init__()
            self.spare = nn.Linear(3, 2)
            self.used = nn.Linear(5, 3)

        def forward(self, x):
            return self.used(x)

    data = (draw(6, 5).float(), torch.tensor([0, 1, 2, 0, 1, 2]))
    risk = ModelRisk(Wasteful(), data)
    rows = risk.hvps(risk.theta, torch.eye(3), draw(3, 26, name="v").float())
    assert torch.equal(rows[:, :8], torch.zeros(3, 8))
    assert (rows[:, 8:].norm(dim=1) > 0).all()
    only = ModelRisk(Wasteful(), data, params="^spare")
    assert torch.equal(only.gradients(only.theta, torch.eye(3)), torch.zeros(3, 8))
    assert torch.equal(only.hvps(only.theta, torch.eye(3), torch.ones(3, 8)), torch.zeros(3, 8))


# ---- identities --------------------------------------------------------------------------------------------------


def test_symmetric_and_linear(risk):
    u, v = draw(2, len(risk.theta), name="uv")
    lane = torch.tensor([LANES["difference"]], dtype=torch.float64)
    with risk.hessian(risk.theta, lane) as product:
        hu, hv, both = product(torch.stack([u, v, 2 * u - 3 * v])[None])[0]
    scale = float(hu.norm() * v.norm())
    # Two inner products of 119 terms: n eps |Hu||v| = 3e-14 |Hu||v|.
    assert abs(float(v @ hu - u @ hv)) <= 3e-14 * scale
    assert (both - (2 * hu - 3 * hv)).norm() <= 1e-13 * (hu.norm() + hv.norm())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("build", [smooth_mlp, digits_convnet])
def test_classes_add_up_to_the_whole(build, dtype, tolerance):
    risk = ModelRisk(build(dtype), digits(dtype=dtype), chunk_size=5)
    vector = draw(1, len(risk.theta), name="v", dtype=dtype)
    shares = risk.class_counts / risk.class_counts.sum()
    classes = risk.hvps(risk.theta, torch.eye(C), vector.expand(C, -1)).double()
    whole = risk.hvps(risk.theta, shares[None], vector)[0].double()
    assert (shares.double() @ classes - whole).norm() <= tolerance * whole.norm()
    gradients = risk.gradients(risk.theta, torch.cat([torch.eye(C), shares[None]])).double()
    assert (shares.double() @ gradients[:C] - gradients[C]).norm() <= tolerance * gradients[:C].norm()


def test_class_losses_add_up_to_the_total():
    images, labels = digits()
    risk = ModelRisk(smooth_mlp(), (images, labels))
    total = functional.cross_entropy(smooth_mlp().eval()(images), labels, reduction="sum").detach()
    assert float((risk.losses(risk.theta) * risk.class_counts).sum()) == pytest.approx(float(total), rel=1e-13)
    assert risk.class_counts.tolist() == list(COUNTS)


@pytest.mark.parametrize("chunk_size", [1, 7, 23, 1000])
@pytest.mark.parametrize("memory_budget", [None, 0, 20_000])
def test_chunks_and_kept_graphs_do_not_change_the_numbers(risk, chunk_size, memory_budget):
    """Ragged chunks, graphs built anew at every product, and a mixture of kept and fresh graphs."""
    other = ModelRisk(smooth_mlp(), digits(), chunk_size=chunk_size, memory_budget=memory_budget)
    vectors = draw(len(LANES), 2, len(risk.theta), name="v")
    with risk.hessian(risk.theta, all_lanes()) as product:
        expected = product(vectors)
    with other.hessian(other.theta, all_lanes()) as product:
        first, second = product(vectors), product(vectors)
    assert torch.equal(first, second)
    assert (first - expected).norm() <= 1e-13 * expected.norm()
    torch.testing.assert_close(other.losses(other.theta), risk.losses(risk.theta), rtol=1e-13, atol=0)
    gradients = risk.gradients(risk.theta, all_lanes())
    assert (other.gradients(other.theta, all_lanes()) - gradients).norm() <= 1e-13 * gradients.norm()


def test_no_graph_is_kept_without_a_budget(monkeypatch):
    """Budget 0 evaluates the losses once per product and chunk; a large budget once per chunk."""
    calls = {}
    for budget in (0, 1 << 30):
        risk = ModelRisk(smooth_mlp(), digits(), memory_budget=budget, chunk_size=50)
        count = 0
        original = risk.per_example

        def counted(theta, rows, original=original):
            nonlocal count
            count += 1
            return original(theta, rows)

        with risk.hessian(risk.theta, torch.tensor([POOLED])):
            pass  # sizes and times are measured once per risk
        monkeypatch.setattr(risk, "per_example", counted)
        with risk.hessian(risk.theta, torch.tensor([POOLED])) as product:
            for _ in range(5):
                product(torch.ones(1, 1, len(risk.theta), dtype=torch.float64))
        calls[budget] = count
    assert calls == {0: 5, 1 << 30: 1}


def test_classes_not_asked_for_are_nan_and_not_computed(risk):
    losses = risk.losses(risk.theta, [1, 3])
    assert losses.isnan().tolist() == [True, False, True, False]
    torch.testing.assert_close(losses[[1, 3]], risk.losses(risk.theta)[[1, 3]], rtol=1e-14, atol=0)


def test_group_average():
    risk = ModelRisk(smooth_mlp(), digits(), groups=GROUPS)
    losses = risk.losses(risk.theta)
    names = {"class_names": risk.class_names, "class_counts": risk.class_counts, "groups": risk.groups}
    pooled = choose_lanes("tail", **names)
    equal = choose_lanes("tail", **names, group_average="classes")
    images, labels = digits()
    each = functional.cross_entropy(smooth_mlp().eval()(images), labels, reduction="none").detach()
    assert float(pooled.weights[0] @ losses) == pytest.approx(float(each[labels >= 2].mean()), rel=1e-13)
    by_class = (each[labels == 2].mean() + each[labels == 3].mean()) / 2
    assert float(equal.weights[0] @ losses) == pytest.approx(float(by_class), rel=1e-13)


# ---- precision and restriction -----------------------------------------------------------------------------------


def test_in_float64_is_the_same_risk_in_double_precision():
    single = ModelRisk(smooth_mlp(torch.float32), digits(dtype=torch.float32), groups=GROUPS)
    double = single.in_float64()
    assert double.theta.dtype == torch.float64
    assert double.attributes["dtype"] == "float64"
    assert single.attributes["dtype"] == "float32"
    assert torch.equal(double.theta, single.theta.double())
    expected = dense_hessian(smooth_mlp(torch.float32).double(), *_as_double(digits(dtype=torch.float32)), POOLED)
    vector = draw(1, len(double.theta), name="v")
    lane = torch.tensor([POOLED], dtype=torch.float64)
    exact = expected @ vector[0]
    assert (double.hvps(double.theta, lane, vector)[0] - exact).norm() <= 1e-12 * exact.norm()
    # Single precision: some tens of units of rounding (6e-8) of a network of two layers.
    assert (single.hvps(single.theta, lane, vector.float())[0] - exact).norm() <= 1e-5 * exact.norm()
    assert double.in_float64() is double


def _as_double(data):
    return data[0].double(), data[1]


def test_restricted_to_some_rows(risk):
    rows = torch.tensor([0, 3, 24, 40, 43])
    few = risk.restricted(rows)
    assert few.class_counts.tolist() == [2, 1, 1, 1]
    images, labels = digits()
    order = torch.argsort(labels, stable=True)[rows]
    expected = dense_hessian(smooth_mlp(), images[order], labels[order], [0.5, 0.0, 0.0, 0.5])
    vector = draw(1, len(risk.theta), name="v")
    product = few.hvps(few.theta, torch.tensor([[0.5, 0.0, 0.0, 0.5]]), vector)[0]
    assert (product - expected @ vector[0]).norm() <= 1e-12 * product.norm()
    assert risk.class_counts.tolist() == list(COUNTS)


# ---- every loss --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_every_loss_has_a_symmetric_hessian_that_differences_confirm(loss):
    """Central difference of gradients with step 1e-5: error h^2 plus rounding 1e-16 / 1e-5, so 1e-7 is safe."""
    risk = ModelRisk(smooth_mlp(), digits(), loss=loss)
    lane = torch.tensor([POOLED], dtype=torch.float64)
    u, v = (w / w.norm() for w in draw(2, len(risk.theta), name="uv"))
    with risk.hessian(risk.theta, lane) as product:
        hu, hv = product(torch.stack([u, v])[None])[0]
    step = 1e-5 * v
    difference = (risk.gradients(risk.theta + step, lane) - risk.gradients(risk.theta - step, lane))[0] / 2e-5
    assert (difference - hv).norm() <= 1e-7 * max(float(hv.norm()), 1.0)
    assert abs(float(v @ hu - u @ hv)) <= 1e-13 * float(hu.norm() + hv.norm())
    assert risk.attributes["objective"] == loss


# ---- second library ----------------------------------------------------------------------------------------------


def test_products_against_pyhessian():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns about reference cycles of backward(create_graph=True)
        from pyhessian import hessian as pyhessian_of
        from pyhessian.utils import hessian_vector_product

        images, labels = digits(dtype=torch.float32)
        other = pyhessian_of(smooth_mlp(torch.float32), nn.CrossEntropyLoss(), data=(images, labels), cuda=False)
        risk = ModelRisk(smooth_mlp(torch.float32), (images, labels))
        vector = draw(1, len(risk.theta), name="v", dtype=torch.float32)
        parts = hessian_vector_product(other.gradsH, other.params, risk.layout.unflatten(vector[0]))
        theirs = torch.cat([part.reshape(-1) for part in parts])
        for parameter in other.params:
            parameter.grad = None
    ours = risk.hvps(risk.theta, (risk.class_counts / risk.class_counts.sum())[None], vector)[0]
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()  # both float32


# ---- GPU ---------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-5)])
def test_a_gpu_gives_the_numbers_of_the_cpu(dtype, tolerance):
    model, data = digits_convnet(dtype), digits(dtype=dtype)
    here, there = ModelRisk(model, data), ModelRisk(model, data, device="cuda")
    vectors = draw(C, len(here.theta), name="v", dtype=dtype)
    lanes = torch.eye(C)
    torch.testing.assert_close(there.losses(there.theta), here.losses(here.theta), rtol=tolerance, atol=tolerance)
    for ours, theirs in (
        (here.hvps(here.theta, lanes, vectors), there.hvps(there.theta, lanes, vectors.cuda())),
        (here.gradients(here.theta, lanes), there.gradients(there.theta, lanes)),
    ):
        assert (ours - theirs.cpu()).norm() <= tolerance * ours.norm()


def test_numbers_of_the_largest_eigenvalue_match_numpy(dense):
    """The oracle itself: symmetric to rounding, and indefinite, so that the tests above test something."""
    for name, matrix in dense.items():
        assert (matrix - matrix.T).abs().max() <= 1e-12 * matrix.abs().max(), name
        values = np.linalg.eigvalsh(matrix.numpy())
        assert values[0] < -1e-3 * values[-1], name
