"""Gauss-Newton products: closed forms, dense Jacobians, and the split of a Hessian's curvature."""

from __future__ import annotations

import pytest
import torch
from risk_cases import COUNTS, dense_hessian, digits, digits_convnet, draw, example_weights, flat_loss, smooth_mlp, unit
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from landscape.errors import LandscapeError
from landscape.losses import LOSSES
from landscape.risk import AnalyticRisk, ModelRisk

X, Y = digits()
POOLED = [n / sum(COUNTS) for n in COUNTS]
MIXED = [0.2, -0.5, 0.0, 1.3]
LANES = torch.tensor([POOLED, MIXED, unit(4, 3)], dtype=torch.float64)


def dense_gauss_newton(model: nn.Module, lane: list[float], loss) -> Tensor:
    """Return J'AJ (n, n) with the dense Jacobian of all logits and A block-diagonal, by nested differentiation."""
    _, theta = flat_loss(model, X, Y, example_weights(Y, lane))
    named = {name: p.detach() for name, p in model.named_parameters()}

    def logits(point):
        parts = point.split([p.numel() for p in named.values()])
        return functional_call(model, {name: part.view(p.shape) for (name, p), part in zip(named.items(), parts)}, (X,))

    jacobian = torch.func.jacrev(logits)(theta)  # (N, C, n)
    z = logits(theta)
    blocks = torch.stack(
        [
            torch.func.jacrev(torch.func.grad(lambda row, i=i: loss(row[None], Y[i : i + 1])[0]))(z[i])
            for i in range(len(Y))
        ]
    )
    weighted = example_weights(Y, lane)[:, None, None] * blocks
    return torch.einsum("icn,icd,idm->nm", jacobian, weighted, jacobian)


def build(name: str) -> ModelRisk:
    return ModelRisk(smooth_mlp(), (X, Y), loss=name, train_counts=COUNTS, chunk_size=10)


@pytest.mark.parametrize("name", list(LOSSES))
def test_products_against_the_dense_matrix(name):
    """Every registered loss; LDAM and the like bend the logits in their own ways. With and without kept graphs."""
    risk = build(name)
    vectors = draw(3, 2, len(risk.theta), name="v")
    model = smooth_mlp().eval()
    dense = [dense_gauss_newton(model, lane.tolist(), risk.loss) for lane in LANES]
    expected = torch.stack([v @ g for v, g in zip(vectors, dense)])
    for budget in (None, 0):
        risk._memory_budget = budget
        with risk.gauss_newton(risk.theta, LANES) as product:
            for _ in range(2):
                assert (product(vectors) - expected).norm() <= 1e-12 * expected.norm()
            assert torch.equal(product(vectors[[2, 0]], [2, 0]), product(vectors)[[2, 0]])


def test_softmax_regression_has_no_functional_part():
    """A network linear in its weights: G is the Hessian, X' (diag p - pp') X in closed form."""
    model = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 4, bias=False)).double()
    risk = ModelRisk(model, (X, Y))
    v = draw(3, len(risk.theta), name="v")
    whole, part, rest = risk.curvature_split(risk.theta, LANES, v)
    assert (rest.abs() <= 1e-13 * part.abs()).all()
    features = functional.avg_pool2d(X, 2).flatten(1)
    p = torch.softmax(features @ model[2].weight.T, 1).detach()
    for b, lane in enumerate(LANES):
        pushed = features @ v[b].view(4, 16).T  # (N, C)
        bends = (p * pushed**2).sum(1) - (p * pushed).sum(1) ** 2
        assert float(part[b]) == pytest.approx(float(bends @ example_weights(Y, lane.tolist())), rel=1e-12)
        assert float(whole[b]) == pytest.approx(float(part[b]), rel=1e-12)


def test_the_split_adds_up_to_the_dense_hessian_and_the_convex_part_is_not_negative():
    risk = build("ce")
    model = smooth_mlp().eval()
    for lane in (POOLED, unit(4, 3)):
        hessian = dense_hessian(model, X, Y, lane)
        values, directions = torch.linalg.eigh(hessian)
        dense = dense_gauss_newton(model, lane, risk.loss)
        assert torch.linalg.eigvalsh(dense)[0] >= -1e-13 * torch.linalg.eigvalsh(dense)[-1]
        v = directions[:, [0, -1]].T.contiguous()
        row = torch.tensor([lane, lane], dtype=torch.float64)
        whole, part, rest = risk.curvature_split(risk.theta, row, v)
        scale = float(values.abs().max())
        assert (whole - values[[0, -1]]).abs().max() <= 1e-12 * scale
        assert (part - torch.stack([u @ dense @ u for u in v])).abs().max() <= 1e-12 * scale
        assert torch.equal(rest, whole - part)
        assert float(whole[0]) < 0 <= float(part[0])
        assert float(rest[0]) < 0  # what is negative comes from the functional part


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
def test_classes_add_up_to_the_whole(dtype, tolerance):
    images, labels = digits(dtype=dtype)
    risk = ModelRisk(digits_convnet(dtype), (images, labels))
    v = draw(1, 1, len(risk.theta), name="v", dtype=dtype)
    with risk.gauss_newton(risk.theta, torch.eye(4)) as product:
        parts = product(v.expand(4, -1, -1))[:, 0].double()
    with risk.gauss_newton(risk.theta, torch.tensor([POOLED], dtype=torch.float64)) as product:
        whole = product(v)[0, 0].double()
    assert (torch.tensor(POOLED, dtype=torch.float64) @ parts - whole).norm() <= tolerance * whole.norm()
    assert float(v[0, 0].double() @ whole) > 0


def test_symmetric():
    risk = build("vs")
    u, v = draw(2, 3, 1, len(risk.theta), name="uv")
    with risk.gauss_newton(risk.theta, LANES) as product:
        left, right = (u * product(v)).sum((1, 2)), (v * product(u)).sum((1, 2))
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-13)


def test_a_loss_that_does_not_bend_and_parameters_that_are_not_used_give_zero():
    risk = ModelRisk(smooth_mlp(), (X, Y), loss=lambda logits, labels: -logits.gather(1, labels[:, None])[:, 0])
    v = draw(3, 1, len(risk.theta), name="v")
    with risk.gauss_newton(risk.theta, LANES) as product:
        assert not product(v).any()

    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.idle, self.used = nn.Linear(2, 2), nn.Linear(64, 4)

        def forward(self, x):
            return self.used(x.flatten(1))

    risk = ModelRisk(Idle().double(), (X, Y), params="idle")
    with risk.gauss_newton(risk.theta, LANES) as product:
        assert not product(draw(3, 1, len(risk.theta), name="v")).any()


def test_batch_statistics_belong_to_the_jacobian():
    """Columns of J by central differences of the logits in training mode, in float64: 1e-7."""
    risk = ModelRisk(smooth_mlp(), (X, Y), batchnorm="batch")
    lane = torch.tensor([unit(4, 2)], dtype=torch.float64)
    evaluated, [(_, rows, coefficients)] = risk._chunks_of(lane)
    v = draw(len(risk.theta), name="v")
    v = v / v.norm()
    with torch.no_grad():
        z = evaluated.logits(risk.theta, rows)
        up, down = (evaluated.logits(risk.theta + s * 1e-5 * v, rows) for s in (1, -1))
    pushed = (up - down) / 2e-5
    p = torch.softmax(z, 1)
    expected = coefficients @ ((p * pushed**2).sum(1) - (p * pushed).sum(1) ** 2)
    _, part, _ = risk.curvature_split(risk.theta, lane, v[None])
    assert float(part[0]) == pytest.approx(float(expected), rel=1e-7)


def test_a_risk_without_logits_has_no_gauss_newton_part():
    assert getattr(AnalyticRisk(lambda x: (x @ x)[None], torch.ones(2)), "gauss_newton", None) is None


def test_graphs_are_let_go_and_recalibrated_statistics_refused():
    risk = build("ce")
    with risk.gauss_newton(risk.theta, LANES) as product:
        assert product._kept
    assert not product._kept
    moving = risk.with_batchnorm("recalibrate")
    with (
        pytest.raises(LandscapeError, match="derivatives need batchnorm 'frozen'"),
        moving.gauss_newton(risk.theta, LANES),
    ):
        pass
