"""What every test of losses draws."""

import pytest
import torch

from landscape.randomness import stream


@pytest.fixture
def batch():
    """Logits (32, 10) within [-1, 1], so that they may be cosines, and labels (32,)."""
    generator = stream(0, "test/losses")
    logits = torch.rand(32, 10, generator=generator, dtype=torch.float64) * 1.9 - 0.95
    return logits, torch.randint(0, 10, (32,), generator=generator)
