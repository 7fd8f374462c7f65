"""Settings of the optimizer tests."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items):
    """Let swa and spectral-norm step alone: what they do besides is tested with their companions."""
    for item in items:
        if item.path.parent.name == "optimizers" and "companions" not in item.path.name:
            item.add_marker(pytest.mark.filterwarnings("ignore:.*its steps alone are plain descent"))
