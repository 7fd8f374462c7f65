"""Batch statistics as a part of the function: a lane's examples are its batch."""

from __future__ import annotations

import copy

import pytest
import torch
from risk_cases import COUNTS, draw, example_weights, smooth_mlp
from test_risk_coverage import LANES, Checkpointed, Recurrent, X, Y, _dense, built, on_pixels
from torch import Tensor, nn
from torch.nn import functional

from landscape.errors import LandscapeError
from landscape.risk import ModelRisk


def batch_hessian(model: nn.Module, row: Tensor) -> tuple[Tensor, Tensor]:
    """Return loss and Hessian of a lane in training mode, its examples as the batch."""
    model = copy.deepcopy(model)
    for layer in model.modules():
        layer.training = isinstance(layer, nn.modules.batchnorm._BatchNorm)
    chosen = row[Y] != 0
    losses = functional.cross_entropy(model(X[chosen]), Y[chosen], reduction="none")
    loss = losses @ example_weights(Y, row.tolist())[chosen]
    return loss.detach(), _dense(loss, list(model.parameters()))


BATCH_LANES = torch.tensor(
    [[7 / 16, 4 / 16, 3 / 16, 2 / 16], [0, 0, 0, 1.0], [0.7, 0, 0.3, 0], [0, 0.5, 0, 0.5]]
).double()
BATCH_MODELS = {
    "smooth": smooth_mlp,
    "tracked": lambda: on_pixels(nn.BatchNorm2d(2), nn.Tanh(), nn.Dropout(0.5), features=8),
    "track-free": lambda: on_pixels(nn.BatchNorm2d(2, track_running_stats=False), nn.Tanh(), features=8),
}


@pytest.mark.parametrize("name", list(BATCH_MODELS))
def test_batch_statistics_against_a_dense_hessian_in_training_mode(name):
    model = built(BATCH_MODELS[name])
    risk = ModelRisk(model, (X, Y), batchnorm="batch")
    buffers = {key: t.clone() for key, t in risk._network.buffers.items()}
    vectors = draw(4, 2, len(risk.theta), name="v")
    dense = [batch_hessian(model, row) for row in BATCH_LANES]
    expected = torch.stack([v @ h for v, (_, h) in zip(vectors, dense)])
    with risk.hessian(risk.theta, BATCH_LANES) as product:
        assert (product(vectors) - expected).norm() <= 1e-12 * expected.norm()
        assert torch.equal(product(vectors), product(vectors))
    losses = risk.lane_losses(risk.theta, BATCH_LANES)
    torch.testing.assert_close(losses, torch.stack([loss for loss, _ in dense]), rtol=1e-13, atol=0)
    assert float(risk.losses(risk.theta)[3]) == pytest.approx(float(losses[1]), rel=1e-13)
    step = 1e-5 * vectors[:, 0] / vectors[:, 0].norm(dim=1, keepdim=True)
    for b in range(4):
        lane = BATCH_LANES[b : b + 1]
        up, down = (risk.lane_losses(risk.theta + s * step[b], lane) for s in (1, -1))
        slope = risk.gradients(risk.theta, BATCH_LANES)[b] @ step[b]
        assert float((up - down) / 2) == pytest.approx(float(slope), rel=1e-6, abs=1e-13)
    assert all(torch.equal(t, buffers[key]) for key, t in risk._network.buffers.items())
    assert not risk.is_additive
    assert risk.attributes["batchnorm"] == "statistics of each lane's own examples"


def test_batch_statistics_are_no_weighted_sum_of_the_classes():
    risk = ModelRisk(smooth_mlp(), (X, Y), batchnorm="batch")
    frozen = risk.with_batchnorm("frozen")
    assert frozen.is_additive
    for each, is_sum in ((risk, False), (frozen, True)):
        parts = BATCH_LANES[0] @ each.losses(each.theta)
        whole = each.lane_losses(each.theta, BATCH_LANES)[0]
        assert (abs(float(parts - whole)) < 1e-13) == is_sum


def test_a_policy_can_be_changed_and_survives_a_change_of_precision():
    risk = ModelRisk(smooth_mlp(), (X, Y))
    direct, derived = ModelRisk(smooth_mlp(), (X, Y), batchnorm="batch"), risk.with_batchnorm("batch")
    assert torch.equal(direct.losses(direct.theta), derived.losses(derived.theta))
    back = derived.with_batchnorm("frozen")
    assert torch.equal(back.losses(back.theta), risk.losses(risk.theta))
    single = ModelRisk(smooth_mlp().float(), (X.float(), Y), batchnorm="batch")
    assert not single.in_float64().is_additive
    torch.testing.assert_close(
        single.in_float64().losses(single.theta.double()), single.losses(single.theta), rtol=1e-5, atol=0
    )


def track_free() -> nn.Module:
    return built(BATCH_MODELS["track-free"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: ModelRisk(track_free(), (X, Y)),
            "batched .* BatchNorm '2' keeps no running statistics; batchnorm='batch' takes",
        ),
        (
            lambda: ModelRisk(track_free(), (X, Y), batchnorm="batch").with_batchnorm("frozen"),
            "BatchNorm '2' keeps no running statistics",
        ),
        (
            lambda: ModelRisk(built(lambda: Recurrent(nn.GRU)), (X, Y), batchnorm="batch"),
            "'batch': the model has no BatchNorm layer; use 'frozen'",
        ),
        (lambda: ModelRisk(smooth_mlp(), (X, Y), batchnorm="train"), "unknown BatchNorm policy 'train'"),
        (lambda: ModelRisk(smooth_mlp(), (X[:1], Y[:1]), batchnorm="batch"), "a single example, which has no variance"),
        (
            lambda: (r := ModelRisk(smooth_mlp(), (X, Y), batchnorm="batch", chunk_size=9)).gradients(r.theta, LANES),
            r"a lane of 16 examples \(class 0, 1, 2, ...\) does not fit one pass of 9; take fewer",
        ),
        (
            lambda: (r := ModelRisk(smooth_mlp(), (X, Y), batchnorm="batch", chunk_size=6)).losses(r.theta),
            r"a lane of 7 examples \(class 0\) does not fit one pass of 6",
        ),
    ],
)
def test_batches_without_statistics_are_refused(call, message):
    with pytest.raises(LandscapeError, match=message):
        call()


def test_a_class_of_one_example_has_no_statistics_but_a_lane_with_it_has():
    rows = torch.cat([torch.nonzero(Y == 0)[:, 0], torch.nonzero(Y == 3)[:1, 0]])
    risk = ModelRisk(smooth_mlp(), (X[rows], Y[rows]), batchnorm="batch")
    assert torch.isfinite(risk.gradients(risk.theta, torch.tensor([[0.5, 0, 0, 0.5]]))).all()
    assert torch.isfinite(risk.losses(risk.theta, [0])[0])
    with pytest.raises(LandscapeError, match=r"\(class 3\) has a single example"):
        risk.losses(risk.theta)
    with pytest.raises(LandscapeError, match=r"\(class 3\) has a single example"):
        risk.hvps(risk.theta, torch.tensor([[0.0, 0, 0, 1]]), risk.theta[None])


@pytest.mark.parametrize("how", ["checkpoint", "batch"])
def test_nothing_of_the_callers_changes(how):
    torch.manual_seed(0)
    model = (Checkpointed(True) if how == "checkpoint" else smooth_mlp()).double().train()
    before = {name: t.detach().clone() for name, t in model.state_dict().items()}
    state = torch.get_rng_state()
    risk = ModelRisk(model, (X, Y), batchnorm="batch" if how == "batch" else "frozen")
    risk.hvps(risk.theta, LANES, draw(2, len(risk.theta), name="v"))
    risk.lane_losses(risk.theta, LANES)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(layer.training for layer in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_cases_are_the_digits_of_the_other_tests():
    assert len(COUNTS) == 4
    assert torch.bincount(Y).tolist() == [7, 4, 3, 2]
