"""Things for every test: one CPU thread (each worker has its core), GPU tests only where there is a GPU, and few
collections of garbage, which among the many objects of the libraries take a tenth of the time."""

import gc
import hashlib
import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded, and for subprocesses
sys.path.insert(0, str(Path(__file__).parent))  # synthetic_results


gc.set_threshold(100_000, 20, 100)


@pytest.fixture(autouse=True)
def _results_read_once(request, monkeypatch):
    """Read results of the same bytes once, where tests are about something else: the library takes most of their time."""
    module = sys.modules.get("landscape.results")
    if module is None or "results" in request.path.name or "exchange" in request.path.name:
        return
    read = module._read

    def cached(path):
        digest = hashlib.sha256(path.read_bytes()).digest()
        if digest not in _READ:
            _READ[digest] = read(path)
        return _READ[digest].copy(deep=True)

    monkeypatch.setattr(module, "_read", cached)


_READ: dict = {}


def pytest_collection_finish():
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items):
    if not any(item.get_closest_marker("gpu") for item in items):
        return
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
