"""The table of measures and the Dataset: complete, documented, reproducible, and it leaves the risk as it was."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from flatness_cases import data, network, quadratic, risk_of
from torch import nn

from landscape.errors import LandscapeError
from landscape.flatness import EFFORT, MEASURES, FlatnessOptions, estimate_flatness, measure, measure_flatness
from landscape.losses import build_loss
from landscape.plan import PRESETS
from landscape.results import Journal, load_results, save_results, validate
from landscape.risk import ModelRisk
from landscape.risk.augmented import RedrawnRisk

PAGE = Path(__file__).resolve().parents[2] / "docs" / "flatness.md"
FEW = FlatnessOptions(num_pairs=2, ascent_steps=2, max_batches=2)


@pytest.fixture(scope="module")
def dataset():
    return measure_flatness(risk_of(), options=FEW)


@pytest.mark.parametrize("name", MEASURES)
def test_every_measure_says_what_it_is_where_it_comes_from_and_what_is_wrong_with_it(name):
    entry = MEASURES[name]
    assert entry.function.__name__ == name
    text = inspect.getdoc(entry.function)
    assert ".. math::" in text
    assert "Source:" in text
    assert "Critique:" in text
    assert all([entry.formula, entry.source, entry.critique, entry.units, entry.exactness])


@pytest.mark.parametrize("name", MEASURES)
def test_every_measure_has_a_value_per_lane_with_its_units_and_formula(name, dataset):
    variable = dataset[name]
    assert variable.dims == ("lane",)
    assert np.isfinite(variable).all()
    entry = MEASURES[name]
    for key in ("units", "formula", "source", "critique", "exactness"):
        assert variable.attrs[key] == getattr(entry, key)
    if "error" in entry.exactness:
        assert dataset[f"{name}_stderr"].attrs["units"] == entry.units
        assert (dataset[f"{name}_stderr"].dropna("lane") > 0).all()
    else:
        assert f"{name}_stderr" not in dataset


def test_the_dataset_holds_the_loss_and_how_many_examples_it_is_of(dataset):
    risk = risk_of()
    losses = risk.losses(risk.theta).numpy()
    np.testing.assert_allclose(dataset.loss, [*losses, losses @ [0.5, 5 / 16, 3 / 16]], rtol=1e-12)
    assert dataset.num_examples.values.tolist() == [8, 5, 3, 16]
    assert dataset.lane_kind.values.tolist() == ["class"] * 3 + ["all"]
    assert dataset.attrs["option_num_pairs"] == 2
    assert dataset.attrs["theta_norm"] == pytest.approx(float(risk.theta.norm()))
    assert "own_loss" not in dataset


def test_every_measure_is_of_the_own_objective_and_the_plain_loss_stands_beside_it(dataset):
    loss = build_loss("logit-adjusted", [8, 5, 3])
    loss.name = "logit-adjusted"
    adjusted = measure_flatness(risk_of(loss=loss), options=FEW)
    np.testing.assert_allclose(adjusted.loss, dataset.loss, rtol=1e-12)
    assert (abs(adjusted.own_loss - adjusted.loss) > 1e-3).all()
    same = {"loss_radius", "relative_flatness", "normalised_mean_increase", "normalised_worst_case_increase"}
    for name in MEASURES:
        assert bool(np.allclose(adjusted[name], dataset[name], rtol=1e-9)) == (name in same), name


def test_a_choice_of_measures_is_what_is_computed_and_the_numbers_are_the_same(dataset):
    chosen = FlatnessOptions(num_pairs=2, ascent_steps=2, measures=("worst_case_increase", "mean_increase"))
    some = measure_flatness(risk_of(), options=chosen)
    assert set(some.data_vars) == {
        "loss", "num_examples", "gradient_norm", "worst_case_increase", "mean_increase", "mean_increase_stderr",
    }  # fmt: skip
    for name in some.data_vars:
        np.testing.assert_array_equal(some[name], dataset[name])


def test_lanes_do_not_depend_on_which_others_are_measured():
    given = FlatnessOptions(num_pairs=2, ascent_steps=2, batch_size=3)
    together, alone = (measure_flatness(risk_of(), lanes, options=given).sel(lane="1") for lanes in (None, "1"))
    for name in alone.data_vars:
        np.testing.assert_allclose(together[name], alone[name], rtol=1e-12)


def test_the_same_seed_gives_the_same_bits_and_nothing_is_changed(dataset):
    risk = risk_of()
    theta, state = risk.theta.clone(), torch.get_rng_state()
    again, other = measure_flatness(risk, options=FEW), measure_flatness(risk, options=FEW, seed=1)
    assert dataset.identical(again)
    assert not np.isclose(again.mean_increase, other.mean_increase).any()
    assert risk.theta.equal(theta)
    assert torch.get_rng_state().equal(state)


def test_single_precision_agrees_with_double(dataset):
    single = measure_flatness(risk_of(dtype=torch.float32), options=FEW)
    for name in MEASURES:
        np.testing.assert_allclose(single[name], dataset[name], rtol=2e-2, atol=1e-5)


def test_a_network_with_frozen_statistics_is_measured_and_its_buffers_stay():
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 3)).double()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert np.isfinite(measure_flatness(ModelRisk(model, data()), options=FEW).mean_increase).all()
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    for policy, message in (
        ("batch", "use batchnorm 'frozen', not 'batch'"),
        ("recalibrate", "need batchnorm 'frozen'"),
    ):
        with pytest.raises(LandscapeError, match=message):
            measure_flatness(ModelRisk(model, data()).with_batchnorm(policy), options=FEW)


def test_redrawn_augmentation_is_refused():
    risk = RedrawnRisk(risk_of(), lambda images, _: images, seed=0)
    with pytest.raises(LandscapeError, match="a flatness analysis needs a fixed function"):
        measure_flatness(risk)


def test_finished_blocks_are_never_computed_again(tmp_path, monkeypatch, dataset):
    journal = Journal(tmp_path / "journal", {})
    assert measure_flatness(risk_of(), options=FEW, journal=journal).identical(dataset)
    risk = risk_of()

    def forbidden(*_, **__):
        raise AssertionError("computed again")

    for name in ("losses", "gradients", "logits", "per_example"):
        monkeypatch.setattr(risk, name, forbidden)
    assert measure_flatness(risk, options=FEW, journal=journal).identical(dataset)


def test_progress_counts_to_its_total():
    seen = []
    measure_flatness(risk_of(), options=FEW, progress=lambda *step: seen.append(step))
    assert [done for done, _, _ in seen] == list(range(1, len(seen) + 1))
    assert {total for _, total, _ in seen} == {len(seen)}


def test_results_survive_the_file(tmp_path):
    found = measure_flatness(quadratic(), options=FEW)
    path = save_results({"flatness": found}, tmp_path / "f.nc")
    stored = validate("flatness", load_results(path)["flatness"].to_dataset())
    for name in found.data_vars:
        np.testing.assert_array_equal(stored[name], found[name])
    assert "needs logits" in stored.relative_flatness.attrs["missing"]
    assert stored.mean_increase.attrs == found.mean_increase.attrs


def test_presets_have_the_names_of_a_diagnosis():
    assert set(EFFORT) == set(PRESETS)


def test_an_estimate_counts_evaluations_and_steps(monkeypatch):
    """Where every evaluation and every step takes a second: an average its pairs and the centre, a search its steps."""
    monkeypatch.setattr(measure, "_seconds", lambda call: 1.0)
    risk, options = quadratic(), {"num_pairs": 7, "ascent_steps": 5}
    gradient = 1.0  # the pass that gives gradients
    averages = estimate_flatness(risk, options=FlatnessOptions(measures=("mean_increase",), **options))[0]
    assert averages == gradient + 1 + 2 * 7
    searches = estimate_flatness(risk, options=FlatnessOptions(measures=("worst_case_increase",), **options))[0]
    assert searches == gradient + 5


@pytest.mark.parametrize("risk", [quadratic(), risk_of()], ids=["analytic", "network"])
def test_an_estimate_grows_with_what_is_asked_for(risk):
    few, size = estimate_flatness(risk, options=FlatnessOptions(measures=("mean_increase",)))
    many, _ = estimate_flatness(risk, options=FlatnessOptions(num_pairs=5000, ascent_steps=500))
    assert 0 < few < many
    assert size > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": 0.0}, "sigma: expected a positive number, got 0.0"),
        ({"adaptive_rho": float("nan")}, "adaptive_rho: expected a positive number, got nan"),
        ({"rho_linf": float("inf")}, "rho_linf: expected a positive number, got inf"),
        ({"num_pairs": 1}, "num_pairs: expected a whole number, at least 2, got 1"),
        ({"ascent_steps": 0}, "ascent_steps: expected a whole number, at least 1, got 0"),
        ({"max_batches": 0}, "max_batches: expected a whole number, at least 1, got 0"),
        ({"batch_size": 0}, "batch_size: expected a whole number, at least 1, got 0"),
        ({"placement": "spere"}, "unknown placement 'spere': did you mean 'sphere'"),
        ({"measures": ("m_sharpness", "m_sharpness")}, "measures: expected each name once"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(LandscapeError, match=message):
        FlatnessOptions(**options)


def test_an_unknown_measure_is_answered_with_the_nearest_known_one():
    with pytest.raises(LandscapeError, match="unknown measure of flatness 'm_sharpnes': did you mean 'm_sharpness'"):
        measure_flatness(quadratic(), options=FlatnessOptions(measures=("m_sharpnes",)))


def test_the_head_alone_can_be_studied():
    head = measure_flatness(risk_of(network(), params="head"), options=FEW)
    assert np.isfinite(head.relative_flatness).all()
    assert head.attrs["num_parameters"] == 24


def test_the_page_lists_every_measure_with_its_source():
    rows = {line.split("`")[1]: line for line in PAGE.read_text().splitlines() if line.startswith("| `")}
    assert set(MEASURES) <= set(rows)
    for name, entry in MEASURES.items():
        for author in (part.split()[0] for part in entry.source.split(", ") if part != "-"):
            assert author in rows[name], name
