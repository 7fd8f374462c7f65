"""What optimizers cost: counted passes, paired times, live memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from landscape.cost import PUBLISHED_NET, CostOptions, measure_costs
from landscape.cost.measure import median_interval
from landscape.cost.memory import LiveTensors
from landscape.errors import LandscapeError
from landscape.training import TrainSpec

PASSES = {
    "sgd": (1, 1),
    "gnm": (1, 1),
    "sam": (2, 2),
    "asam": (2, 2),
    "imbsam": (2, 3),
    "ssesam": (3, 4),
    "ccsam": (1, 1),
}


@pytest.fixture(scope="module")
def costs():
    spec = TrainSpec(model="mlp", batch_size=16)
    return {row.optimizer: row for row in measure_costs(spec, list(PASSES), options=CostOptions(num_rounds=6))}


def test_passes_are_those_of_the_papers(costs):
    assert {name: (row.num_forwards, row.num_backwards) for name, row in costs.items()} == PASSES


def test_the_plain_optimizer_is_the_reference(costs):
    plain = costs["sgd"]
    assert (plain.ratio, plain.ratio_low, plain.ratio_high, plain.implied) == (1, 1, 1, 1)
    assert next(iter(costs)) == "sgd"
    for row in costs.values():
        assert row.ratio_low <= row.ratio <= row.ratio_high
        assert row.images_per_second == pytest.approx(16 / row.seconds)


def test_two_passes_imply_twice_the_time(costs):
    assert costs["sam"].implied == pytest.approx(2, abs=1e-12)
    assert 2 < costs["imbsam"].implied < 3


def test_perturbed_steps_take_more_memory(costs):
    # SAM holds the weights' clones and a perturbation beside what a plain step holds.
    assert costs["sam"].peak_bytes > costs["sgd"].peak_bytes


def test_the_interval_of_a_median_covers():
    rng = np.random.default_rng(0)
    for num in (6, 9, 15, 40):
        hits = 0
        for _ in range(2000):
            _, low, high = median_interval(rng.exponential(size=num))
            hits += low <= np.log(2) <= high
        assert hits / 2000 > 0.94


def test_live_memory_of_a_known_computation():
    weight = torch.ones(1000)
    with LiveTensors([weight]) as memory:
        double = weight * 2  # 4,000 bytes more
        del double
        triple = weight * 3
        view = triple[:10]
        view.add_(1)  # neither a view nor an in-place operation takes memory
    assert memory.peak == 8000
    assert memory.alive == 8000


def test_live_memory_sees_the_backward_pass():
    x = torch.ones(500, requires_grad=True)
    with LiveTensors([x]) as memory:
        (x.exp() * 2).sum().backward()
    # x, exp(x), 2 exp(x), the sum; then the gradients of the product and of exp, one after the other.
    assert memory.peak >= 4 * 2000
    assert memory.peak <= 6 * 2000


def test_the_published_ratios_follow_from_the_published_seconds():
    by_name = {row.method: row for row in PUBLISHED_NET}
    assert 1 - by_name["CE+GNM"].seconds / by_name["CE+SAM"].seconds == pytest.approx(0.4461, abs=5e-5)
    assert 1 - by_name["GCL+DRW+GNM"].seconds / by_name["GCL+DRW+SAM"].seconds == pytest.approx(0.4369, abs=5e-5)


@pytest.mark.parametrize(("option", "value"), [("num_rounds", 5), ("num_steps", 0)])
def test_too_few_rounds_or_steps_are_refused(option, value):
    with pytest.raises(LandscapeError, match=f"got {value}"):
        CostOptions(**{option: value})


def test_unknown_optimizers_are_refused():
    with pytest.raises(LandscapeError, match="adamax"):
        measure_costs(TrainSpec(model="mlp"), ["adamax"])
