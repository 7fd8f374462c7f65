"""measure_spectrum as a measurement: streams, lanes, journal, schema, costs, records."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import xarray as xr
from spectrum_cases import COUNTS, GROUPS, Counting, matrix_of, network_risk, quadratic

from landscape.errors import LandscapeError
from landscape.randomness import stream
from landscape.results import SCHEMA, Journal, load_results, save_results, validate
from landscape.risk import lanes_of
from landscape.spectrum import SpectrumOptions, extreme_directions, measure, measure_spectrum
from landscape.spectrum.measure import TINY_LANE

OPTIONS = SpectrumOptions(num_probes=3, num_steps=8, max_steps=24)


@pytest.fixture(scope="module")
def risk():
    return network_risk()


@pytest.fixture(scope="module")
def result(risk):
    return measure_spectrum(risk, options=OPTIONS)


def test_same_seed_same_bits_other_seed_other_bits(risk, result):
    torch.manual_seed(5)  # the global state does not matter
    xr.testing.assert_identical(measure_spectrum(risk, options=OPTIONS), result)
    other = measure_spectrum(risk, options=OPTIONS, seed=1)
    for name in ("ritz_value", "trace", "negative_energy"):
        assert not np.array_equal(other[name], result[name], equal_nan=True)
    # The extremes have converged: another start gives the same numbers to the accuracy stated, other bits.
    assert np.allclose(other.lambda_max, result.lambda_max, rtol=1e-6)


def test_global_random_states_stay(risk):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    measure_spectrum(risk, "1", options=OPTIONS)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


@pytest.mark.parametrize("lanes", ["3", 3, ["tail", 0], "all,2", "groups"])
def test_a_lane_does_not_depend_on_the_others(risk, result, lanes):
    """Bit for bit; lanes of a few examples share joint products, whose rounding knows of the company."""
    some = measure_spectrum(risk, lanes, options=OPTIONS)
    for lane in some.lane.values:
        is_joint = int(result.num_examples.sel(lane=lane)) <= TINY_LANE
        for name in some.data_vars:
            if some[name].dims not in (("lane",), ("lane", "probe", "step"), ("lane", "rank"), ("lane", "parameter")):
                continue
            got, expected = some[name].sel(lane=lane).values, result[name].sel(lane=lane).values
            if name.startswith("ritz_"):  # padded to the longest lane
                width = got.shape[1]
                assert np.isnan(expected[:, width:]).all()
                expected = expected[:, :width]
            if not is_joint or name in ("verdict", "num_hvps"):
                np.testing.assert_array_equal(got, expected)
            elif name != "evidence" and not name.endswith(("residual", "_error", "noise_floor", "orthogonality")):
                np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-9)


def test_probes_of_a_lane_differ_and_so_do_lanes(result):
    values = result.ritz_value.sel(lane="all").values
    assert not np.array_equal(values[0], values[1], equal_nan=True)
    head, same_class = result.sel(lane="head"), result.sel(lane="0")
    # One and the same operator under two names: equal numbers from different probes.
    assert float(head.lambda_max) == pytest.approx(float(same_class.lambda_max), rel=1e-9)
    assert float(head.trace) != float(same_class.trace)


def test_schema_and_coordinates(result):
    assert validate("spectrum", result) is result
    assert list(result.lane.values) == ["0", "1", "2", "3", *GROUPS, "all"]
    assert list(result.lane_kind.values) == ["class"] * 4 + ["group"] * 3 + ["all"]
    assert list(result.lane_group.values) == ["head", "medium", "tail", "tail", "", "", "", ""]
    assert result.num_examples.values.tolist() == [*COUNTS, 20, 10, 7, 37]
    assert dict(result.sizes)["probe"] == 3
    for name in set(SCHEMA["spectrum"]) - {"ritz_value", "ritz_weight", "crossover_radius", "quadratic_radius"}:
        assert result[name].notnull().all(), name
    weights = result.ritz_weight.values
    assert np.allclose(np.nansum(weights, axis=2), 1, atol=1e-12)
    assert np.array_equal(np.isnan(weights), np.isnan(result.ritz_value.values))
    for name in ("lambda_min", "trace", "crossover_radius", "negative_energy"):
        assert result[name].attrs["units"]


def test_attributes_record_what_was_done(result, risk):
    attributes = result.attrs
    assert attributes["kind"] == "spectrum"
    assert attributes["seed"] == 0
    assert attributes["objective"] == "ce"
    assert attributes["dtype"] == "float64"
    assert attributes["batchnorm"] == "frozen"
    assert attributes["num_parameters"] == len(risk.theta)
    assert attributes["lower_bound_probability"] == pytest.approx(0.999)
    assert {attributes[f"option_{key}"] for key in ("num_probes", "num_steps", "max_steps")} == {3, 8, 24}
    assert "torch" in attributes["versions"]
    json.dumps(attributes)


def test_a_result_survives_its_file(result, tmp_path):
    loaded = load_results(save_results({"spectrum": result}, tmp_path / "results.nc"))["spectrum"].to_dataset()
    for name in result.data_vars:
        np.testing.assert_array_equal(loaded[name].values, result[name].values)


def test_losses_and_gradients_of_the_lanes(risk, result):
    losses = risk.losses(risk.theta)
    shares = risk.class_counts / risk.class_counts.sum()
    assert float(result.loss.sel(lane="all")) == pytest.approx(float(shares.double() @ losses), rel=1e-6)
    assert float(result.loss.sel(lane="2")) == float(losses[2])
    norms = risk.gradients(risk.theta, torch.eye(4)).norm(dim=1)
    assert result.gradient_norm.values[:4] == pytest.approx(norms.numpy(), rel=1e-12)


# ---- journal -----------------------------------------------------------------------------------------------------


def test_finished_lanes_are_never_computed_again(tmp_path, result):
    counting = Counting(network_risk())
    journal = Journal(tmp_path, {"seed": 0})
    measure_spectrum(counting, ["0", "tail"], options=OPTIONS, journal=journal)
    first = counting.num_products
    assert first > 0
    whole = measure_spectrum(counting, options=OPTIONS, journal=Journal(tmp_path, {"seed": 0}))
    assert counting.num_products > first
    _require_equal_to_rounding(whole, result)  # '0' and 'tail' had other company
    done = counting.num_products
    again = measure_spectrum(counting, options=OPTIONS, journal=Journal(tmp_path, {"seed": 0}))
    assert counting.num_products == done
    xr.testing.assert_identical(again, whole)


def _require_equal_to_rounding(one, other):
    """What only rounds is compared by its order of magnitude: residuals, errors and floors of rounding themselves."""
    for name, values in one.data_vars.items():
        if name == "evidence" or name.endswith(("residual", "_error", "noise_floor", "orthogonality")):
            continue
        if values.dtype.kind == "f":
            np.testing.assert_allclose(values, other[name], rtol=1e-9, atol=1e-12, err_msg=name)
        else:
            np.testing.assert_array_equal(values, other[name], err_msg=name)


def test_a_killed_run_goes_on_where_it_stopped(tmp_path, result):
    class Killed(Exception):
        pass

    def kill_after_three(done, total, text):
        assert total == 8
        if done >= 3:
            raise Killed

    with pytest.raises(Killed):
        measure_spectrum(network_risk(), options=OPTIONS, journal=Journal(tmp_path, {}), progress=kill_after_three)
    counting, seen = Counting(network_risk()), []
    resumed = measure_spectrum(
        counting, options=OPTIONS, journal=Journal(tmp_path, {}), progress=lambda *args: seen.append(args)
    )
    _require_equal_to_rounding(resumed, result)
    assert counting.num_products < int(result.num_hvps.sum())
    assert seen[0] == (6, 8, "spectrum of head")  # 0, 1 and the small lanes together were kept
    assert seen[-1] == (8, 8, "spectrum of all")


def test_the_products_reported_are_the_products_made():
    """The run, the proof (repeat, linearity, classes), both ends, and the probes."""
    counting = Counting(network_risk())
    lane = measure_spectrum(counting, "all", options=OPTIONS).isel(lane=0)
    assert int(lane.num_hvps) == counting.num_products
    assert int(lane.num_hvps) == int(lane.num_steps_extremes) + 2 + 1 + 2 + 3 * 8


def test_the_products_of_many_lanes_and_of_warm_starts_are_counted():
    counting, ends = Counting(network_risk()), {}
    cold = measure_spectrum(counting, options=OPTIONS, directions=ends)
    assert int(cold.num_hvps.sum()) == counting.num_products
    counting = Counting(network_risk())
    warm = measure_spectrum(counting, options=OPTIONS, warm=ends)
    assert int(warm.num_hvps.sum()) == counting.num_products


@pytest.mark.parametrize("lanes_at_once", [1, 2, 3])
def test_waves_are_as_large_as_the_memory_holds(monkeypatch, lanes_at_once):
    """A third of the free memory is for bases: of the longest run (as far as they usually go) and of every probe."""
    risk = network_risk()
    lanes, options = lanes_of(risk, None), SpectrumOptions(num_probes=3, num_steps=8, max_steps=24)
    basis = (24 + 3 * (8 + 2)) * len(risk.theta) * 8
    monkeypatch.setattr(measure, "available_memory", lambda device: 3 * (lanes_at_once * basis + basis // 2))
    waves = measure.plan_waves(risk, lanes, list(range(len(lanes))), options)
    assert max(map(len, waves)) == lanes_at_once
    assert sorted(index for wave in waves for index in wave) == list(range(len(lanes)))


# ---- lanes -------------------------------------------------------------------------------------------------------


def test_unknown_and_empty_lanes(risk):
    with pytest.raises(LandscapeError, match="unknown lane 'tial': did you mean 'tail'"):
        measure_spectrum(risk, "tial")
    empty = quadratic([matrix_of(np.arange(3.0))] * 2, class_counts=[4, 0])
    with pytest.raises(LandscapeError, match="lane '1' has no examples"):
        measure_spectrum(empty, "1")


def test_extreme_directions_are_those_of_the_measurement(risk, result):
    found = extreme_directions(risk, "tail", options=OPTIONS)
    lane = result.sel(lane="tail")
    assert (found.lambda_min, found.lambda_max) == (float(lane.lambda_min), float(lane.lambda_max))
    assert found.residual_min == float(lane.lambda_min_residual)
    product = risk.hvps(risk.theta, torch.tensor([[0.0, 0, 5 / 7, 2 / 7]], dtype=torch.float64), found.v_min[None])[0]
    assert float((product - found.lambda_min * found.v_min).norm()) == pytest.approx(found.residual_min, abs=1e-12)


def test_streams_are_named(risk):
    """Lane and probe name the stream, so that another probe count leaves the first probes as they are."""
    more = measure_spectrum(risk, "all", options=SpectrumOptions(num_probes=5, num_steps=8, max_steps=24)).isel(lane=0)
    less = measure_spectrum(risk, "all", options=SpectrumOptions(num_probes=2, num_steps=8, max_steps=24)).isel(lane=0)
    # Rows in lock-step share their matrix products, whose last bits depend on the number of rows.
    np.testing.assert_allclose(more.ritz_value[:2], less.ritz_value, rtol=0, atol=1e-9)
    assert stream(0, "a").initial_seed() != stream(0, "b").initial_seed()
