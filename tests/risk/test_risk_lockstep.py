"""Lanes of few examples that share a graph give the numbers of lanes on their own, whichever of them move."""

from __future__ import annotations

import pytest
import torch
from test_risk_strategies import Recurrent, normalised_network, random_data, vectors_for
from torch import Tensor, nn

from landscape.models import build_model
from landscape.randomness import stream
from landscape.risk import AnalyticRisk, ModelRisk
from landscape.risk.lockstep import blocks_of

COUNTS = (2, 5, 2, 3, 5, 12, 0, 1)  # class 5 is too large to join, class 6 is empty, 1 and 3 have nobody of their size


def imbalanced(*shape: int) -> tuple[Tensor, Tensor]:
    inputs, _ = random_data(*shape, num_classes=sum(COUNTS), per_class=1)
    return inputs, torch.arange(len(COUNTS)).repeat_interleave(torch.tensor(COUNTS))


def network(num_outputs: int = len(COUNTS)) -> nn.Module:
    torch.manual_seed(1)
    trunk = normalised_network()[:4]
    return nn.Sequential(*trunk, nn.Linear(8, num_outputs)).double().eval()


def lanes() -> Tensor:
    """One lane per class, and two pools: classes 0 and 7 (three rows, apart), all."""
    pools = torch.zeros(2, len(COUNTS), dtype=torch.float64)
    pools[0, [0, 7]] = torch.tensor([2 / 3, 1 / 3], dtype=torch.float64)
    pools[1] = torch.tensor(COUNTS) / sum(COUNTS)
    return torch.cat([torch.eye(len(COUNTS), dtype=torch.float64), pools])


@pytest.mark.parametrize("num_probes", [1, 2])
def test_joined_lanes_agree_with_lanes_on_their_own(num_probes: int) -> None:
    risk = ModelRisk(network(), imbalanced(1, 4, 4))
    vectors = vectors_for(risk, len(lanes()), num_probes)
    with risk.hessian(risk.theta, lanes()) as product:
        together = product(vectors)
        assert product.strategies["joint"] == 6  # two lanes of 2, two of 5, the class and the pool of 3
        assert product.strategies["retained"] == 3  # 12, 1 and all; the empty class has no chunk
    for row, lane in enumerate(lanes()):
        with risk.hessian(risk.theta, lane[None]) as alone:
            expected = alone(vectors[row : row + 1])[0]
        assert torch.allclose(together[row], expected, rtol=0, atol=1e-12 * float(1 + expected.abs().max()))


def test_some_lanes_move_and_the_others_stand_still() -> None:
    risk = ModelRisk(network(), imbalanced(1, 4, 4))
    vectors = vectors_for(risk, len(lanes()), 2)
    with risk.hessian(risk.theta, lanes()) as product:
        whole = product(vectors)
        for chosen in ([0], [4, 1], [9, 8, 5, 3, 0], list(range(10))[::-1]):
            part = product(vectors[chosen], lanes=chosen)
            assert torch.allclose(part, whole[chosen], rtol=0, atol=1e-12)


def test_analytic_risks_let_lanes_stand_still_too() -> None:
    risk = AnalyticRisk(lambda x: torch.stack([x[0] ** 2, -(x[1] ** 2), x[0] * x[1]]), torch.ones(2))
    with risk.hessian(risk.theta, torch.eye(3)) as product:
        assert product(torch.ones(2, 1, 2), lanes=[2, 1])[:, 0].tolist() == [[1.0, 1.0], [0.0, -2.0]]


def test_the_budget_holds_for_joint_graphs() -> None:
    data = imbalanced(1, 4, 4)
    needed = ModelRisk(network(), data).product_bytes(lanes())
    risk = ModelRisk(network(), data, memory_budget=needed[0] * 2)
    with risk.hessian(risk.theta, lanes()) as product:
        assert product.strategies["joint"] == 2


def test_frozen_parameters_are_shared_by_the_lanes() -> None:
    for choice in ("head", "backbone"):
        risk = ModelRisk(network(), imbalanced(1, 4, 4), params=choice)
        vectors = vectors_for(risk, 2, 1)
        pair = torch.eye(len(COUNTS), dtype=torch.float64)[[0, 2]]
        with risk.hessian(risk.theta, pair) as product, risk.hessian(risk.theta, pair[1:]) as alone:
            assert product.strategies["joint"] == 2
            assert torch.allclose(product(vectors)[1:], alone(vectors[1:]), rtol=0, atol=1e-12)


def test_what_cannot_be_mapped_over_lanes_runs_lane_by_lane() -> None:
    torch.manual_seed(0)
    risk = ModelRisk(Recurrent().double(), random_data(4, 2, num_classes=2))
    vectors = vectors_for(risk, 2, 1)
    pair = torch.eye(2, dtype=torch.float64)
    with risk.hessian(risk.theta, pair) as product, risk.hessian(risk.theta, pair[1:]) as alone:
        assert torch.allclose(product(vectors)[1:], alone(vectors[1:]), rtol=0, atol=1e-12)


def test_blocks_hold_lanes_of_one_size_and_are_never_single() -> None:
    device = torch.device("cpu")
    sizes = [3] * 23 + [2] + [9] * 4 + [8] * 5
    given = {lane: (torch.arange(k), torch.ones(k)) for lane, k in enumerate(sizes)}
    blocks = blocks_of(given, device=device)
    assert sorted(lane for block in blocks for lane in block.lanes) == [*range(23), *range(28, 33)]
    assert all(len({sizes[lane] for lane in block.lanes}) == 1 < len(block.lanes) for block in blocks)


def test_workers_change_no_bits_and_leave_the_threads_alone():
    """Pieces side by side on a CPU: the same products as one by one, whatever is computed beside a piece."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        inputs = torch.randn(60, 3, 8, 8, generator=stream(0, "test/workers/x"), dtype=torch.float64)
        labels = torch.arange(60) % 3
        model = build_model("resnet20", num_classes=3, in_channels=3, image_size=8)
        risk = ModelRisk(model, (inputs, labels), dtype=torch.float64, chunk_size=10)
        weights = torch.eye(3, dtype=torch.float64)
        vectors = torch.randn(3, 2, len(risk.theta), generator=stream(0, "test/workers/v"), dtype=torch.float64)
        with risk.hessian(risk.theta, weights) as product:
            assert product._workers.num_workers == 2
            together = product(vectors)
            alone = [product(vectors[lane : lane + 1, :1], lanes=[lane])[0, 0] for lane in range(3)]
            assert torch.get_num_threads() == 2
        assert torch.equal(together[:, 0], torch.stack(alone))
        torch.set_num_threads(1)
        with risk.hessian(risk.theta, weights) as product:
            assert product._workers.num_workers == 1
            torch.testing.assert_close(product(vectors), together, rtol=1e-9, atol=1e-11)
    finally:
        torch.set_num_threads(before)
