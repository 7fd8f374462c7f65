"""Spectra over a training: the order of checkpoints, warm starts against cold ones, and what the figure's axis means."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import landscape as ls
from landscape.errors import LandscapeError
from landscape.figures.trajectories import plot_trajectory
from landscape.spectrum import SpectrumOptions, measure_spectrum
from landscape.trajectory import epoch_in_name, measure_trajectory, order_snapshots

OPTIONS = SpectrumOptions(num_probes=1, num_steps=6, context=False)
LANES = ["0", "tail"]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 10)).double()


@pytest.fixture(scope="module")
def data():
    digits = ls.load_dataset("digits-lt")
    return digits, (digits.normalise(digits.train.images).double(), digits.train.labels)


@pytest.fixture(scope="module")
def files(data, tmp_path_factory):
    """Three checkpoints of a short training, their epochs in their names."""
    folder = tmp_path_factory.mktemp("training")
    _, (images, labels) = data
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    paths = []
    for step in range(21):
        if step % 10 == 0:
            paths.append(folder / f"net_e{step}.pt")
            torch.save(model.state_dict(), paths[-1])
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return paths


@pytest.fixture(scope="module")
def open_risk(data):
    digits, pair = data

    def opened(path):
        model = network()
        model.load_state_dict(torch.load(path, weights_only=True))
        return ls.ModelRisk(model, pair, groups=digits.groups.members)

    return opened


@pytest.fixture(scope="module")
def warm(files, open_risk) -> xr.Dataset:
    return measure_trajectory(order_snapshots(files[::-1]), open_risk, LANES, options=OPTIONS)


def test_checkpoints_are_ordered_by_the_epochs_they_state(files):
    shuffled = order_snapshots([files[2], files[0], files[1], files[0]])
    assert [s.epoch for s in shuffled] == [0, 10, 20]  # one content counts once
    assert not any(s.is_numbered for s in shuffled)
    assert epoch_in_name("weights.pt") is None


def test_a_file_without_an_epoch_leaves_the_order_as_given(files, tmp_path):
    unnamed = tmp_path / "weights.pt"
    unnamed.write_bytes(files[0].read_bytes())
    snapshots = order_snapshots([files[2], unnamed])
    assert [(s.path.name, s.epoch, s.is_numbered) for s in snapshots] == [
        ("net_e20.pt", 0, True),
        ("weights.pt", 1, True),
    ]


def test_two_contents_of_one_epoch_are_refused(files, tmp_path):
    other = tmp_path / "copy_e10.pt"
    other.write_bytes(files[2].read_bytes())
    with pytest.raises(LandscapeError, match="two of epoch 10"):
        order_snapshots([files[1], other])


def test_warm_starts_find_the_ends_that_cold_ones_find(warm, files, open_risk):
    assert warm.epoch.values.tolist() == [0, 10, 20]
    assert warm.attrs["epoch_means"] == "epochs done"
    for index, path in enumerate(files):
        cold = measure_spectrum(open_risk(path), LANES, options=OPTIONS)
        one = warm.isel(checkpoint=index)
        for end in ("lambda_min", "lambda_max"):
            np.testing.assert_allclose(one[end].values, cold[end].values, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(one.loss.values, cold.loss.values, rtol=1e-12)
    assert np.isfinite(warm.lambda_min_lower_bound[0]).all()
    overlap = warm.overlap_previous.values
    assert np.isnan(overlap[0]).all()
    assert ((overlap[1:] >= 0) & (overlap[1:] <= 1)).all()


def test_overlaps_are_those_of_the_eigenvectors(files, open_risk):
    directions: list[dict] = [{}, {}]
    for found, path in zip(directions, files[1:]):
        measure_spectrum(open_risk(path), ["0"], options=OPTIONS, directions=found)
    expected = float(directions[0]["0"][0] @ directions[1]["0"][0]) ** 2
    trajectory = measure_trajectory(order_snapshots(files[1:]), open_risk, ["0"], options=OPTIONS, is_warm=False)
    assert float(trajectory.overlap_previous[1, 0]) == pytest.approx(expected, rel=1e-9)


def test_the_axis_says_whether_it_counts_epochs(warm):
    for means, words in (("epochs done", "epochs done"), ("position", "not every file states its epoch")):
        figure = plot_trajectory(warm.assign_attrs(epoch_means=means), lanes=["0"])
        assert any(words in axes.get_xlabel() for axes in figure.axes)
