"""The modes of the command ``spectrum``: what they print with which errors, draw, spend and refuse."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr
from cli_cases import FEW, contents, refuses, succeeds

from landscape.cli.spectrum_tables import show_groups
from landscape.cli.terminal import with_error
from landscape.results import load_results

FAST = ("--num-probes", "2", "--num-steps", "4", "--tolerance", "0.05")


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (-0.03605, 0.021, "-0.036 ± 0.02"),  # never fewer than two digits
        (-100.4871, 0.07, "-100.49 ± 0.07"),
        (9.0462134, 3.1e-6, "9.04621 ± 3e-06"),  # never more than six
        (40.49, 14.0, "40 ± 10"),
        (1150.2, 93.0, "1150 ± 90"),
        (7.312e-8, 1e-6, "7.3e-08 ± 1e-06"),
        (1.0, 0.0096, "1.00 ± 0.01"),
        (0.0, 0.5, "0 ± 0.5"),
        (2.5, 0.0, "2.5 ± 0"),
        (2.5, float("nan"), "2.5"),
        (float("nan"), 1.0, "-"),
    ],
)
def test_a_value_has_the_digits_that_its_error_allows(value, error, text):
    assert with_error(value, error) == text


@pytest.fixture(scope="module")
def plain(checkpoint, tmp_path_factory) -> tuple[str, xr.Dataset]:
    """What the plain command prints, and its results."""
    out = tmp_path_factory.mktemp("plain") / "s.nc"
    text = succeeds("spectrum", checkpoint, "--out", out, *FEW, *FAST)
    return text, load_results(out)["spectrum"].to_dataset()


def test_every_number_comes_with_its_error_or_is_called_exact(plain):
    text, dataset = plain
    assert all(len(line) <= 120 for line in text.splitlines()[:-1])
    for words in (
        "loss, |g|: exact",
        "accuracy ± standard error",
        "lambda ± error: holds the smallest",
        "trace ± rounding",
    ):
        assert words in text
    for column in ("v'Hv over images", "crossover", "v'Gv", "negative energy", "negative mass", "index", "products"):
        assert column in text
    assert f"{int(dataset.num_hvps.sum())} Hessian products" in text
    if bool((dataset.quadratic_radius > 0).any()):
        assert "itself, -g" in text


def printed(dataset: xr.Dataset, capsys) -> str:
    show_groups({"spectrum": dataset})
    return capsys.readouterr().out


def test_what_was_not_measured_has_no_column(plain, capsys):
    unknown = ["trace", "crossover_radius", "quadratic_radius", "lambda_min_error", "lambda_max_error"]
    dataset = plain[1].copy()
    for name in unknown:
        dataset[name] = dataset[name] * np.nan
    text = printed(dataset, capsys)
    for words in ("trace", "crossover", "escapes", "lambda ± error"):
        assert words not in text
    assert "no error bars" in text


def test_of_a_redrawn_operator_nothing_is_called_an_error(plain, capsys):
    dataset = plain[1].copy()
    dataset["verdict"] = ("lane", ["refused"] * dataset.sizes["lane"])
    dataset["crossover_radius"] = dataset.crossover_radius * np.nan
    dataset["quadratic_radius"] = dataset.quadratic_radius * np.nan
    text = printed(dataset, capsys)
    assert "belong to no matrix" in text
    for words in ("lambda ± error", "trace ± standard error", "index"):
        assert words not in text


def test_without_negative_curvature_there_is_no_radius_at_which_it_wins(plain, capsys):
    dataset = plain[1].copy()
    dataset["lambda_min"] = abs(dataset.lambda_min)
    dataset["crossover_radius"] = dataset.crossover_radius + float("inf")
    rows = [line.split() for line in printed(dataset, capsys).splitlines() if line.startswith(("0 ", "tail "))]
    assert rows[2][1:4] == rows[3][1:4] == ["0", "0", "-"]


def test_until_verdict_measures_no_density_and_a_budget_is_kept(checkpoint, tmp_path):
    arguments = ("spectrum", checkpoint, "--out", tmp_path / "s.nc", *FEW, "--json")
    rows = json.loads(succeeds(*arguments, "--until", "verdict"))
    assert all(row["trace"] is None and row["verdict"] for row in rows)
    rows = json.loads(succeeds(*arguments, "--budget", "40", "--num-probes", "2"))
    assert all(38 < row["num_hvps"] <= 40 for row in rows)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("--budget", "3"), "--budget: expected at least"),
        (("--num-traces", "-1"), "--num-traces"),
        (("--num-steps", "1"), "--num-steps"),
        (("--tolerance", "nan"), "--tolerance.*got nan"),
        (("--until", "never"), "--until 'never'"),
        (("--basis", "disk"), "--basis 'disk'"),
        (("--matched", "0"), "--matched.*got 0"),
        (("--until", "verdict", "--num-probes", "3"), "--num-probes 3: --until verdict measures no density"),
        (("--layers", "--backend", "pyhessian"), "expected one kind of measurement"),
        (("--backend", "pyhessian", "--budget", "50"), "--budget 50: PyHessian takes"),
        (("--layers", "--dry-run"), "--dry-run.*--layers"),
    ],
)
def test_impossible_settings_are_named_as_typed_before_anything_is_loaded(
    arguments, match, checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setattr("landscape.pipeline.prepare", lambda *_: pytest.fail("loaded"))
    refuses(tmp_path, "spectrum", checkpoint, "--out", tmp_path / "s.nc", *arguments, match=match)


def test_checkpoints_of_two_architectures_are_refused_before_anything_is_measured(
    checkpoint, foreign, tmp_path, monkeypatch
):
    monkeypatch.setattr("landscape.pipeline.prepare", lambda *_: pytest.fail("loaded"))
    refuses(tmp_path, "spectrum", checkpoint, foreign, "--out", tmp_path / "s.nc", match="does not fit")


def test_a_dry_run_estimates_what_was_asked_for(checkpoint, tmp_path):
    def seconds(command: str, *arguments: str) -> dict[str, dict[str, float]]:
        text = succeeds(command, checkpoint, "--out", tmp_path / "s.nc", *FEW, "--dry-run", "--json", *arguments)
        return json.loads(text)

    assert list(seconds("spectrum")) == ["spectrum of checkpoint.safetensors"]
    assert list(seconds("spectrum", "--matched", "2")) == ["spectrum of checkpoint.safetensors, 3 times"]
    assert list(seconds("surface")) == ["surface of checkpoint.safetensors"]
    assert contents(tmp_path) == {}


def test_matched_draws_that_are_all_images_have_no_error(checkpoint, tmp_path):
    out = tmp_path / "m.nc"
    text = succeeds(
        "spectrum", checkpoint, "--out", out, "--lanes", "0,9", "--matched", "2", *FAST, "--max-per-class", "8"
    )
    last = [line for line in text.splitlines() if line.startswith("9 ")][-1]
    assert last.count("the same") == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m-matched.pdf", "m-matched.png", "m.nc"]


def test_the_trace_says_what_its_error_means(checkpoint, tmp_path):
    for trace, words in (("exact", "trace ± rounding, and what"), ("probes", "trace ± standard error over probes")):
        out = tmp_path / f"{trace}.nc"
        assert words in succeeds("spectrum", checkpoint, "--out", out, *FEW, *FAST, "--trace", trace)
        dataset = load_results(out)["spectrum"].to_dataset()
        assert dataset.attrs["option_trace"] == trace
        assert (dataset.trace_low <= dataset.trace).all()
        assert (dataset.trace <= dataset.trace_high).all()
    impossible = ("spectrum", checkpoint, "--out", out, "--trace", "exact", "--num-traces", "2")
    refuses(tmp_path, *impossible, match="--trace: expected")
