"""Products with diagonal blocks agree with the blocks of the dense Hessian, and visit no more than they must."""

from __future__ import annotations

import pytest
import torch
from test_risk_strategies import dense_hessian, normalised_network, pooled, random_data

from landscape.errors import LandscapeError
from landscape.risk import ModelRisk
from landscape.risk.layers import layer_hessian

GROUPS = [("0.weight",), ("4.bias",), ("4.weight", "0.bias"), ("1.weight", "1.bias", "5.weight")]


@pytest.mark.parametrize("budget", [None, 0])
@pytest.mark.parametrize("names", GROUPS)
def test_blocks_agree_with_the_dense_hessian(names: tuple[str, ...], budget: int | None) -> None:
    model, data = normalised_network().eval(), random_data(1, 4, 4, num_classes=3)
    risk = ModelRisk(model, data, memory_budget=budget, chunk_size=5)
    numbers = risk.layout.named(torch.arange(len(risk.theta)))
    block = torch.cat([numbers[name].reshape(-1) for name in names])
    dense = dense_hessian(model, risk, data)[block][:, block]
    with layer_hessian(risk, risk.theta, pooled(risk)) as product:
        result = product(names, torch.eye(len(block), dtype=torch.float64))
    assert torch.allclose(result, dense, rtol=0, atol=1e-12 * max(1, float(dense.abs().max())))


def test_one_first_backward_serves_all_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    risk = ModelRisk(normalised_network(), random_data(1, 4, 4, num_classes=3))
    with layer_hessian(risk, risk.theta, pooled(risk)) as product:
        monkeypatch.setattr(product, "_graph", None)
        for name, size in zip(risk.layout.names, risk.layout.sizes):
            assert product([name], torch.ones(2, size, dtype=torch.float64)).shape == (2, size)


def test_bad_blocks_are_refused() -> None:
    risk = ModelRisk(normalised_network(), random_data(1, 4, 4, num_classes=3))
    with layer_hessian(risk, risk.theta, pooled(risk)) as product:
        with pytest.raises(LandscapeError, match=r"'0\.wait'"):
            product(["0.wait"], torch.ones(1, 18, dtype=torch.float64))
        with pytest.raises(LandscapeError, match=r"expected vectors \(P, 18\), got \(1, 17\)"):
            product(["0.weight"], torch.ones(1, 17, dtype=torch.float64))
    with (
        pytest.raises(LandscapeError, match=r"one lane \(1, C\), got \(2, 3\)"),
        layer_hessian(risk, risk.theta, torch.ones(2, 3)),
    ):
        pass
