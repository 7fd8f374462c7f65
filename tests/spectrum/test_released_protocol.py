"""The released settings: what the loader serves, what the protocol measures, and that redrawn data invent saddles."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from landscape.data import load_dataset
from landscape.data.augmentation import TRANSFORMS
from landscape.errors import LandscapeError
from landscape.figures.released import plot_released_protocol, released_density
from landscape.loading import CheckpointSource, LoadedCheckpoint, load_checkpoint, risk_of
from landscape.models import build_model
from landscape.randomness import stream
from landscape.risk import ModelRisk
from landscape.spectrum import saddle_longtail as released
from landscape.spectrum.bridge import PyHessianSettings
from landscape.spectrum.pyhessian import measure_spectrum_with_pyhessian

SHORT = PyHessianSettings(num_steps=15, max_iterations=10)


class SoftmaxRegression(nn.Module):
    """Convex in its weights: the Hessian of the cross-entropy is positive semidefinite."""

    def __init__(self, num_classes: int, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, num_classes)

    def forward(self, images):
        return self.linear(images.flatten(1))


@pytest.fixture(scope="module")
def convex():
    """Return a softmax regression on the long-tailed digits with its source."""
    dataset = replace(load_dataset("digits-lt"), augmentation="crop-flip")
    model = SoftmaxRegression(10, 64)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn(p.shape, generator=stream(0, f"test/{name}"), dtype=torch.float64))
    checkpoint = type(
        "File", (), {"sha256": "0", "other_container": None, "spec": None, "state_dict": {}, "path": "x"}
    )()
    return LoadedCheckpoint(checkpoint, model, dataset, {}), CheckpointSource("x.pt", device="cpu")


def test_the_released_numbers():
    settings = released.RELEASED
    assert (settings.num_steps, settings.num_probes) == (100, 1)
    assert (settings.max_iterations, settings.tolerance) == (100, 1e-3)
    assert released.BATCH_SIZE == 128


def test_batches_come_in_file_order_and_are_redrawn_at_every_pass():
    images = torch.arange(300, dtype=torch.float32).view(300, 1, 1, 1).expand(300, 1, 8, 8).contiguous() / 300 + 1
    risk = ModelRisk(SoftmaxRegression(3, 64), (images, torch.arange(300) // 140))  # 140, 140, 20 of each class
    loader = released.RedrawnBatches(
        risk, torch.arange(140), transform=TRANSFORMS["shift"], batch_size=128, generator=stream(0, "test/redraw")
    )
    first, second = list(loader), list(loader)
    assert [len(labels) for _, labels in first] == [128, 12]  # the small last batch is kept
    assert loader.num_passes == 2
    inside = first[0][0][:, 0, 4, 4]
    assert torch.equal(inside, images[:128, 0, 0, 0])  # file order, every time
    assert torch.equal(inside, second[0][0][:, 0, 4, 4])
    changed = (first[0][0] != second[0][0]).flatten(1).any(1).double().mean()
    assert changed > 0.8  # 8 of 9 shifts differ


def test_a_convex_model_gets_a_negative_eigenvalue_from_redrawn_data_only(convex):
    loaded, source = convex
    redrawn = released.measure_released(loaded, source, [8, 9], settings=SHORT)
    frozen = released.measure_released(
        loaded, CheckpointSource("x.pt", device="cpu", split="test"), [8, 9], settings=SHORT
    )
    assert (redrawn["lambda_min"] < -0.1 * redrawn["lambda_max"]).all()
    assert (frozen["lambda_min"] > -1e-4 * frozen["lambda_max"]).all()
    np.testing.assert_allclose(redrawn["lambda_max_over_min"], redrawn["lambda_max"] / redrawn["lambda_min"])
    assert redrawn.attrs["protocol"] == "saddle-longtail"
    assert redrawn.attrs["augmentation"] == "crop-flip, redrawn at every product"
    assert frozen.attrs["augmentation"] == "none"
    assert set(redrawn["evidence"].values.tolist()) == {released.NO_VERDICT}
    assert set(redrawn["verdict"].values.tolist()) == {"undecided"}
    again = released.measure_released(loaded, source, [9], settings=SHORT)
    assert np.array_equal(again["ritz_value"].values[0], redrawn["ritz_value"].values[1], equal_nan=True)


def test_the_loss_is_plain_cross_entropy_of_the_whole_class_without_weight_decay(convex):
    loaded, source = convex
    result = released.measure_released(loaded, source, [9], settings=SHORT)
    rows = loaded.dataset.train.labels == 9
    logits = loaded.model(loaded.dataset.normalise(loaded.dataset.train.images[rows]))
    expected = nn.functional.cross_entropy(logits, loaded.dataset.train.labels[rows]).item()
    assert float(result["loss"][0]) == pytest.approx(expected, rel=1e-5)
    assert int(result["num_examples"][0]) == int(rows.sum())


def test_a_checkpoint_file_goes_through_the_protocol(tmp_path):
    model = build_model("mlp", num_classes=10, in_channels=1, image_size=8)
    path = tmp_path / "net.pt"
    torch.save({"state_dict": model.state_dict()}, path)
    source = CheckpointSource(path, model="mlp", dataset="digits-lt", device="cpu", max_per_class=4, loss="ldam")
    result = released.measure_released(load_checkpoint(source), source, "0", settings=SHORT)
    assert result.attrs["objective"] == "ce"
    assert dict(result.sizes) == {"lane": 1, "probe": 1, "step": 15}


def test_the_smoothing_of_one_node_is_a_gaussian_of_the_released_variance():
    grid, density = released_density(np.array([[-1.0, 3.0]]), np.array([[0.25, 0.75]]))
    assert (len(grid), grid[0], grid[-1]) == (10_000, -1.01, 3.01)
    assert density.sum() * (grid[1] - grid[0]) == pytest.approx(1.0, rel=1e-12)
    sigma = np.sqrt(1e-5 * 4.02)
    near = np.abs(grid - 3.0) < 5 * sigma
    # the node at the edge loses 6 % of its mass beyond the margin; the rest is renormalised
    shape = np.exp(-((grid[near] - 3.0) ** 2) / (2 * sigma**2))
    np.testing.assert_allclose(density[near] / density[near].max(), shape / shape.max(), atol=1e-12)
    narrow, _ = released_density(np.array([[0.0, 1e-3]]), np.full((1, 2), 0.5))
    assert narrow[-1] - narrow[0] == pytest.approx(0.021)


def test_the_smoothing_averages_runs_and_leaves_missing_nodes_out():
    values = np.array([[0.0, 1.0, np.nan], [0.5, 2.0, 3.0], [np.nan] * 3])
    weights = np.where(np.isnan(values), np.nan, 0.5)
    grid, density = released_density(values, weights)
    assert grid[0] == pytest.approx(0.25 - 0.01)
    assert grid[-1] == pytest.approx(2.0 + 0.01)
    assert np.isfinite(density).all()
    with pytest.raises(LandscapeError, match="only missing"):
        released_density(np.full((1, 2), np.nan), np.ones((1, 2)))


@pytest.fixture(scope="module")
def both(convex):
    loaded, source = convex
    theirs = released.measure_released(loaded, source, [8, 9], settings=SHORT)
    ours = measure_spectrum_with_pyhessian(risk_of(loaded, source), [8, 9], settings=SHORT)
    return theirs, ours.assign(verdict=ours["verdict"].copy(data=["slope", "saddle"]))


@pytest.mark.parametrize("backend", ["matplotlib", "plotly"])
def test_the_figure_names_both_eigenvalues_and_why_there_is_no_verdict(both, backend):
    theirs, ours = both
    figure = plot_released_protocol(theirs, ours, backend=backend)
    if backend == "matplotlib":
        texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    else:
        texts = [annotation.text for annotation in figure.layout.annotations]
    assert sum(released.NO_VERDICT in text for text in texts) == 2
    assert sum(text.startswith("ours: λmin") for text in texts) == 2
    assert {"slope", "saddle"} <= set(texts)
    with pytest.raises(LandscapeError, match="both"):
        plot_released_protocol(theirs.isel(lane=[0]), ours.isel(lane=[1]), backend=backend)
