"""The published plots: what they measure equals a direct measurement, and every figure says what of it is ours."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from landscape.errors import LandscapeError
from landscape.perturbation import PerturbationOptions, measure_perturbation
from landscape.randomness import stream
from landscape.reconstruction import RECONSTRUCTIONS, plots, reconstruct, writing
from landscape.reconstruction.plots import NUM_RANDOM, RADII, Settings
from landscape.results import load_results, validate
from landscape.risk import AnalyticRisk, ModelRisk
from landscape.surface import measure_surface

GROUPS = {"head": (0,), "tail": (1, 2)}
PLANES = ("gnm-surface", "imbsam-head-tail", "focal-sam-head-tail")
# Points per axis that keep a test short; draws have none.
FEW = {name: None if name == "ccsam-fluctuation" else 3 for name in RECONSTRUCTIONS}


def network_risk(scale=1.0, *, sha="", loss="ce", split="train", counts=(6, 3, 2)):
    generator = stream(0, "test/reconstruction")
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor(counts))
    inputs = torch.randn(len(labels), 5, generator=generator, dtype=torch.float64)
    attributes = {"split": split, "optimizer": "sgd"} | ({"checkpoint_sha256": sha} if sha else {})
    return ModelRisk(model, (inputs, labels), groups=GROUPS, loss=loss, attributes=attributes)


def bowl():
    """Two classes |theta|^2 and 2 |theta|^2 at ones(6)."""
    function = lambda t: torch.stack([t @ t, 2 * t @ t])  # noqa: E731
    groups = {"head": (0,), "tail": (1,)}
    return AnalyticRisk(function, torch.ones(6, dtype=torch.float64), class_counts=[3, 1], groups=groups)


@pytest.fixture
def undrawn(monkeypatch):
    """Save no figure, which takes longer than all the rest; return what was to be saved, by file name."""
    figures = {}

    def keep(figure, stem):
        figures[Path(stem).name] = figure
        return []

    monkeypatch.setattr(writing, "save_figure", keep)
    return figures


def results_of(path):
    (node,) = load_results(path).children.values()
    return validate(node.name, node.to_dataset())


# ---- every one ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECONSTRUCTIONS)
def test_every_reconstruction_says_what_is_ours(name, tmp_path, undrawn):
    entry = RECONSTRUCTIONS[name]
    paths = reconstruct(name, {"sgd": network_risk(), "sam": network_risk(1.5)}, tmp_path, points=FEW[name])
    assert re.fullmatch(r"Reconstruction of .+: .+ours", entry.title)
    assert undrawn
    for label, figure in undrawn.items():
        assert label.startswith(name)
        text = figure.texts[0]
        assert text.get_text() == entry.title
        figure.draw_without_rendering()
        assert text.get_window_extent().x1 <= figure.bbox.x1, "the title is cut off"
    caption = (tmp_path / f"{name}.md").read_text()
    assert entry.title in caption
    assert f"- Public: {entry.public}." in caption
    assert f"- Ours: {entry.ours}." in caption
    files = [path for path in paths if path.suffix == ".nc"]
    assert [path.name for path in files] == [f"{name}-sgd.nc", f"{name}-sam.nc"]
    for path in files:
        dataset = results_of(path)
        assert (dataset.attrs["reconstruction"], dataset.attrs["ours"]) == (name, entry.ours)
        assert {"head", "tail", "all"} <= set(dataset.lane.values)
    assert set(tmp_path.iterdir()) == set(paths)


def test_figures_are_saved_as_png_and_pdf(tmp_path):
    paths = reconstruct("focal-sam-head-tail", {"sgd": network_risk()}, tmp_path, points=3)
    pictures = sorted(path.name for path in paths if path.suffix in (".png", ".pdf"))
    stems = ("focal-sam-head-tail-contours-relative", "focal-sam-head-tail-contours")
    assert pictures == sorted(f"{stem}.{ending}" for stem in stems for ending in ("png", "pdf"))
    assert (tmp_path / pictures[1]).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", RECONSTRUCTIONS)
def test_the_number_of_evaluations_is_what_is_announced(name, tmp_path, undrawn, monkeypatch):
    counted = []
    evaluate = AnalyticRisk.evaluate
    monkeypatch.setattr(AnalyticRisk, "evaluate", lambda *args, **named: counted.append(1) or evaluate(*args, **named))
    reconstruct(name, {"bowl": bowl()}, tmp_path, points=FEW[name])
    centre = 1 if name == "ccsam-fluctuation" else 0
    assert len(counted) == RECONSTRUCTIONS[name].num_evaluations(FEW[name]) + centre


def test_published_numbers_of_points():
    assert RECONSTRUCTIONS["ccsam-line"].num_evaluations(None) == 5 * 51
    assert RECONSTRUCTIONS["gnm-surface"].num_evaluations(None) == 51**2
    assert all(0.0 in Settings(points=n).grid("plane") for n in range(3, 200, 2))  # np.linspace misses it at 99
    grid = Settings().grid("plane")
    np.testing.assert_allclose(grid, np.linspace(-1, 1, 51), rtol=0, atol=1e-15)
    assert (grid[0], grid[25], grid[-1], len(grid)) == (-1.0, 0.0, 1.0, 51)


# ---- the numbers --------------------------------------------------------------------------------------------------


def test_five_draws_of_the_published_variance(tmp_path, undrawn):
    reconstruct("ccsam-fluctuation", {"bowl": bowl()}, tmp_path, seed=3)
    kept = results_of(tmp_path / "ccsam-fluctuation-bowl.nc")
    options = PerturbationOptions(radii=RADII, sigmas=(1e-3**0.5,), num_draws=2 * NUM_RANDOM, rhos=())
    direct = measure_perturbation(bowl(), options=options, seed=3)
    for variable in ("loss_increase", "gaussian_loss_increase"):
        np.testing.assert_array_equal(kept[variable].values, direct[variable].values)
    # A pair's mean is r^2 |d|^2 with |d| = |theta|, exactly: 6 r^2 for the head.
    np.testing.assert_allclose(kept.mean_increase.sel(lane="head"), 6 * np.array(RADII) ** 2, rtol=1e-12)
    drawn = plots._five_draws(kept)
    assert drawn.sizes["draw"] == 5
    values = kept.loss_increase.values[:, :, 0::2]
    np.testing.assert_allclose(drawn.mean_increase.values, values.mean(-1), rtol=1e-12)
    np.testing.assert_allclose(drawn.mean_increase_stderr.values, values.std(-1, ddof=1) / 5**0.5, rtol=1e-12)


@pytest.mark.parametrize("name", PLANES)
def test_a_plane_is_the_surface_of_the_same_seed(name, tmp_path, undrawn):
    reconstruct(name, {"sgd": network_risk()}, tmp_path, seed=2, points=3)
    kept = results_of(tmp_path / f"{name}-sgd.nc")
    direct = measure_surface(network_risk(), "all", kind="plane", x=[-1, 0, 1], y=[-1, 0, 1], seed=2)
    np.testing.assert_array_equal(kept.loss.sel(lane="all"), direct.loss.sel(lane="all"))
    assert kept.attrs["normalization"].startswith("filter-normalised, biases and normalisation layers unmoved")


def test_checkpoints_share_the_raw_draws_and_take_their_own_norms(tmp_path, undrawn):
    reconstruct("gnm-surface", {"one": network_risk(), "two": network_risk(2.0)}, tmp_path, points=3)
    one, two = (results_of(tmp_path / f"gnm-surface-{name}.nc") for name in ("one", "two"))
    norms = [np.array(json.loads(d.attrs["direction_norms"])) for d in (one, two)]
    np.testing.assert_allclose(norms[1], 2 * norms[0], rtol=1e-6)
    reconstruct("gnm-surface", {"one": network_risk(), "same": network_risk()}, tmp_path / "again", points=3)
    same = results_of(tmp_path / "again" / "gnm-surface-same.nc")
    np.testing.assert_array_equal(one.loss.values, same.loss.values)


def test_without_the_weights_on_the_grid_nothing_is_drawn_relative_to_them(tmp_path, undrawn):
    reconstruct("gnm-surface", {"sgd": network_risk()}, tmp_path, points=4)
    assert set(undrawn) == {"gnm-surface-top", "gnm-surface-side"}


@pytest.mark.parametrize(
    ("name", "own", "plain"),
    [("ccsam-fluctuation", "own_loss_increase", "loss_increase"), ("ccsam-line", "own_loss", "loss")],
)
def test_own_losses_are_drawn_beside_cross_entropy(name, own, plain, tmp_path, undrawn):
    reconstruct(name, {"ce": network_risk()}, tmp_path, points=FEW[name])
    assert not any("own-loss" in label for label in undrawn)
    undrawn.clear()
    reconstruct(name, {"ce": network_risk(), "focal": network_risk(loss="focal")}, tmp_path, points=FEW[name])
    assert any("own-loss" in label for label in undrawn)
    results = {key: results_of(tmp_path / f"{name}-{key}.nc") for key in ("ce", "focal")}
    np.testing.assert_allclose(results["ce"][plain], results["focal"][plain], rtol=1e-12)  # plain for all models
    drawn = plots._with_own_loss(results, own, plain)
    np.testing.assert_array_equal(drawn["ce"][own], results["ce"][plain])
    assert not np.allclose(drawn["focal"][own], results["focal"][plain])


# ---- resuming, and bad input --------------------------------------------------------------------------------------


def test_a_killed_reconstruction_goes_on_where_it_stopped(tmp_path, undrawn):
    class Killed(Exception):
        pass

    def kill(done, total, text):
        if text.startswith("two"):
            raise Killed

    risks = {"one": network_risk(sha="1"), "two": network_risk(1.5, sha="2")}
    with pytest.raises(Killed):
        reconstruct("gnm-surface", risks, tmp_path, points=3, progress=kill)
    assert list((tmp_path / "journal").iterdir())
    # Finished rows are read, not computed: the first checkpoint's function may be gone.
    risks["one"].losses_of = None
    reconstruct("gnm-surface", risks, tmp_path, points=3)
    assert not (tmp_path / "journal").exists()
    expected = measure_surface(network_risk(), "all", kind="plane", x=[-1, 0, 1], y=[-1, 0, 1])
    np.testing.assert_array_equal(
        results_of(tmp_path / "gnm-surface-one.nc").loss.sel(lane="all"), expected.loss[..., 0]
    )


def test_weights_that_nothing_identifies_are_never_taken_from_a_journal(tmp_path, undrawn):
    reconstruct("gnm-surface", {"one": network_risk()}, tmp_path, points=3)
    assert not (tmp_path / "journal").exists()


@pytest.mark.parametrize(
    ("name", "risks", "options", "match"),
    [
        ("gnm-surfaces", {"a": network_risk}, {}, "unknown reconstruction 'gnm-surfaces'.*gnm-surface"),
        ("gnm-surface", {}, {}, "at least one checkpoint"),
        ("gnm-surface", {"a/b": network_risk}, {}, "checkpoint name 'a/b'"),
        ("gnm-surface", {"a": network_risk}, {"points": 2}, "at least 3 per axis, got 2"),
        ("ccsam-fluctuation", {"a": network_risk}, {"points": 9}, "got points: leave it out"),
        ("ccsam-fluctuation", {"a": network_risk}, {"batchnorm": "recalibrate"}, "got batchnorm 'recalibrate'"),
        ("gnm-surface", {"a": network_risk}, {"batchnorm": "frosted"}, "frosted"),
        ("gnm-surface", {"a": network_risk, "b": bowl}, {}, "a and b differ in classes"),
        (
            "gnm-surface",
            {"a": network_risk, "b": lambda: network_risk(split="test")},
            {},
            "differ in split, train and te",
        ),
        (
            "gnm-surface",
            {"a": network_risk, "b": lambda: network_risk(counts=(6, 3, 3))},
            {},
            "differ in images per cl",
        ),
        (
            "imbsam-head-tail",
            {"a": lambda: AnalyticRisk(lambda t: (t @ t)[None], torch.ones(2))},
            {},
            "a: expected head and tail classes, got no head",
        ),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(name, risks, options, match, tmp_path, undrawn):
    with pytest.raises(LandscapeError, match=match) as caught:
        reconstruct(name, {key: make() for key, make in risks.items()}, tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
