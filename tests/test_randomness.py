"""Named streams: stable across versions of this package, independent of each other and of global states."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from landscape.randomness import numpy_stream, stream, stream_seed


def test_the_seed_of_a_stream_is_a_published_function_of_its_name():
    """Results name their seed; another version of the package must find the same stream."""
    for seed, name in ((0, "spectrum/all/probe=0"), (7, "model/init"), (-1, "")):
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        assert stream_seed(seed, name) == int.from_bytes(digest[:8], "little") // 2
        assert 0 <= stream_seed(seed, name) < 2**63


def test_streams_do_not_collide():
    """seed + i collides at once; neither may names and seeds that concatenate alike."""
    seeds = [stream_seed(seed, f"probe={i}") for seed in range(100) for i in range(100)]
    assert len(set(seeds)) == len(seeds)
    assert stream_seed(1, "1/x") != stream_seed(11, "x")
    assert stream_seed(0, "a") != stream_seed(0, "a ")


@pytest.mark.parametrize(
    "draw",
    [
        lambda seed, name: torch.randn(50, generator=stream(seed, name)).numpy(),
        lambda seed, name: numpy_stream(seed, name).standard_normal(50),
    ],
    ids=["torch", "numpy"],
)
def test_same_name_same_bits_other_name_other_bits(draw):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = draw(3, "a")
    torch.rand(1)
    np.random.random(1)  # noqa: NPY002
    assert np.array_equal(draw(3, "a"), first)
    assert not np.array_equal(draw(3, "b"), first)
    assert not np.array_equal(draw(4, "a"), first)
    # Uncorrelated: |r| of 50 pairs has standard deviation 1 / 7.
    assert abs(np.corrcoef(draw(3, "b"), first)[0, 1]) < 5 / 7
    torch.set_rng_state(before[0])
    draw(5, "c")
    assert torch.equal(torch.get_rng_state(), before[0])


def test_streams_live_on_the_cpu_unless_asked():
    assert stream(0, "x").device == torch.device("cpu")
