"""Every way to form a Hessian product gives the dense Hessian; which one is used follows from the memory and the clock."""

from __future__ import annotations

import pytest
import torch
from risk_cases import digits, smooth_mlp
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from landscape.errors import LandscapeError
from landscape.risk import ModelRisk
from landscape.risk.products import ChunkedHessian

STRATEGIES = ["auto", "retained", "reverse-over-forward", "fresh"]


class Recurrent(nn.Module):
    """An LSTM, whose CPU kernels have no forward-mode derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.LSTM(2, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(self.cell(inputs)[0][:, -1])


def normalised_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3), nn.BatchNorm1d(3)
    ).double()


def random_data(*shape: int, num_classes: int, per_class: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(num_classes * per_class, *shape, generator=generator, dtype=torch.float64)
    return inputs, torch.arange(num_classes).repeat_interleave(per_class)


def dense_hessian(model: nn.Module, risk: ModelRisk, data: tuple[Tensor, Tensor]) -> Tensor:
    def mean(theta: Tensor) -> Tensor:
        return functional.cross_entropy(functional_call(model, risk.layout.named(theta), (data[0],)), data[1])

    point = risk.theta.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(mean(point), point, create_graph=True)
    return torch.stack([torch.autograd.grad(entry, point, retain_graph=True)[0] for entry in gradient])


def pooled(risk: ModelRisk) -> Tensor:
    return (risk.class_counts.double() / risk.class_counts.sum())[None]


def vectors_for(risk: ModelRisk, num_lanes: int, num_probes: int) -> Tensor:
    generator = torch.Generator().manual_seed(6)
    return torch.randn(num_lanes, num_probes, len(risk.theta), generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("num_probes", [1, 3])
@pytest.mark.parametrize("chunk_size", [None, 5])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_products_agree_with_the_dense_hessian(strategy: str, chunk_size: int | None, num_probes: int) -> None:
    model, data = normalised_network().eval(), random_data(1, 4, 4, num_classes=3)
    risk = ModelRisk(model, data, chunk_size=chunk_size)
    dense = dense_hessian(model, risk, data)
    vectors = vectors_for(risk, 1, num_probes)
    with risk.hessian(risk.theta, torch.full((1, 3), 1 / 3, dtype=torch.float64), strategy=strategy) as product:
        assert torch.allclose(product(vectors), vectors @ dense, rtol=0, atol=1e-12 * float(dense.abs().max()) * 10)
        assert sum(product.strategies.values()) == (1 if chunk_size is None else 3)
        if strategy != "auto":
            assert set(+product.strategies) == {strategy}


def test_both_routes_without_graphs_are_timed_once_per_risk() -> None:
    data = random_data(1, 4, 4, num_classes=3)
    risk = ModelRisk(normalised_network(), data, memory_budget=0)
    lane = torch.full((1, 3), 1 / 3, dtype=torch.float64)
    for _ in range(2):
        with risk.hessian(risk.theta, lane) as product:
            seconds = product._known["seconds torch.float64"]
            assert set(seconds) == {"fresh", "reverse-over-forward"}
            assert set(+product.strategies) == {min(seconds, key=seconds.get)}
    with risk.hessian(risk.theta, lane) as product:
        assert product._known["seconds torch.float64"] is seconds


def test_a_layer_without_forward_mode_falls_back_to_fresh_graphs() -> None:
    torch.manual_seed(0)
    model, data = Recurrent().double(), random_data(4, 2, num_classes=2)
    risk = ModelRisk(model, data, memory_budget=0)
    dense = dense_hessian(model, risk, data)
    vectors = vectors_for(risk, 1, 1)
    with risk.hessian(risk.theta, torch.full((1, 2), 0.5, dtype=torch.float64)) as product:
        result = product(vectors)
        assert torch.allclose(result, vectors @ dense, rtol=0, atol=1e-12)
        routes = set(product._known["seconds torch.float64"])
        assert set(+product.strategies) <= routes


def test_graphs_are_kept_in_the_order_of_the_chunks_while_the_budget_lasts() -> None:
    data = random_data(1, 4, 4, num_classes=3, per_class=12)
    whole = ModelRisk(normalised_network(), data)
    lane = torch.full((1, 3), 1 / 3, dtype=torch.float64)
    (needed,) = whole.product_bytes(lane)
    risk = ModelRisk(normalised_network(), data, memory_budget=needed // 2, chunk_size=6)
    with risk.hessian(risk.theta, lane) as product, whole.hessian(risk.theta, lane) as kept:
        assert 0 < product.strategies["retained"] < 6
        assert sum(product.strategies.values()) == 6
        vectors = vectors_for(risk, 1, 2)
        assert torch.allclose(product(vectors), kept(vectors), rtol=0, atol=1e-12)


def test_estimated_bytes_are_those_that_a_graph_saves() -> None:
    """The straight line through 2 and 4 examples meets what 12 examples save."""
    data = random_data(1, 4, 4, num_classes=1 + 2, per_class=4)
    risk = ModelRisk(normalised_network(), data)
    (estimated,) = risk.product_bytes(torch.full((1, 3), 1 / 3, dtype=torch.float64))
    storages: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        risk.hessian(risk.theta, torch.full((1, 3), 1 / 3, dtype=torch.float64), strategy="retained"),
    ):
        resident = [risk._examples.inputs, risk.labels, *risk._network.buffers.values()]
        there = {t.untyped_storage().data_ptr() for t in resident}  # without the graph too
        saved = sum(t.untyped_storage().nbytes() for address, t in storages.items() if address not in there)
    assert estimated == pytest.approx(saved, rel=0.1)


def test_weights_that_are_held_fixed_are_not_counted_for_every_graph() -> None:
    """They are there anyway; of a large frozen network under few trained parameters they would take the whole budget."""
    wide = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 4000), nn.Tanh(), nn.Linear(4000, 3))
    risk = ModelRisk(wide.double(), random_data(1, 4, 4, num_classes=3, per_class=4), params=r"1\.", chunk_size=1)
    lane = torch.full((1, 3), 1 / 3, dtype=torch.float64)
    frozen = sum(t.nbytes for name, t in wide.named_parameters() if not name.startswith("1."))
    activations = 12 * 4000 * 8
    (estimated,) = risk.product_bytes(lane)
    assert 2 * activations < estimated < 12 * activations < 12 * frozen


def test_sizes_measured_in_one_precision_are_known_in_the_other() -> None:
    risk = ModelRisk(smooth_mlp().float(), digits(), memory_budget=1 << 20)
    lane = torch.full((1, 4), 0.25, dtype=torch.float64)
    (single,) = risk.product_bytes(lane)
    exact = risk.in_float64()
    assert exact.product_bytes(lane)[0] == pytest.approx(2 * single, rel=1e-3)
    assert exact.memory_budget == 1 << 18  # beside those of the other


def test_a_lane_of_one_chunk_and_its_pieces_agree_in_float32() -> None:
    risk = ModelRisk(smooth_mlp().float(), digits())
    lane = pooled(risk).float()
    vectors = vectors_for(risk, 1, 1).float()
    with risk.hessian(risk.theta, lane) as whole, risk.hessian(risk.theta, lane, chunk_size=3) as pieces:
        a, b = whole(vectors), pieces(vectors)
    assert float((a - b).norm()) <= 1e-5 * float(a.norm())


def test_an_unknown_strategy_is_refused() -> None:
    risk = ModelRisk(smooth_mlp(), digits())
    with (
        pytest.raises(LandscapeError, match="'fastest'"),
        risk.hessian(risk.theta, pooled(risk), strategy="fastest"),  # type: ignore[arg-type]
    ):
        pass


def test_no_lane_is_no_work() -> None:
    risk = ModelRisk(smooth_mlp(), digits())
    assert risk.product_bytes(torch.zeros(2, len(risk.class_names), dtype=torch.float64)) == [0, 0]
    product = ChunkedHessian(risk.per_example, risk.theta, [], budget=1)
    assert not product(torch.ones(1, 1, len(risk.theta), dtype=torch.float64)).any()
