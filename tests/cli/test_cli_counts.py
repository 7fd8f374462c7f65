"""Numbers that mean nothing are refused in one line: counts beyond all measure, seeds below zero, rates of 0."""

from __future__ import annotations

import pytest
from cli_cases import refuses

HUGE = str(10**20)
TRAINING = ("--epochs", "--batch-size", "--accumulate", "--snapshot-every")
ANALYSES = {
    "spectrum": (
        "--num-probes",
        "--num-steps",
        "--max-steps",
        "--num-extremes",
        "--budget",
        "--num-traces",
        "--matched",
    ),
    "perturb": ("--num-draws",),
    "flatness": ("--num-pairs", "--ascent-steps", "--max-batches", "--batch-size"),
    "surface": ("--num-pairs",),
}


@pytest.mark.parametrize("flag", TRAINING)
@pytest.mark.parametrize("value", [HUGE, "-1"])
def test_counts_of_a_training(flag, value, tmp_path):
    refuses(
        tmp_path,
        "train",
        "--model",
        "mlp",
        flag,
        value,
        "--out",
        tmp_path / "out",
        match=r"whole number, at (most|least)",
    )


@pytest.mark.parametrize(("command", "flag"), [(c, flag) for c, flags in ANALYSES.items() for flag in flags])
def test_counts_of_an_analysis(command, flag, checkpoint, tmp_path):
    out = tmp_path / "out.nc"
    refuses(
        tmp_path, command, checkpoint, flag, HUGE, "--out", out, match=r"whole number, at most 10,000,000, got 100,000"
    )
    refuses(tmp_path, command, checkpoint, flag, "-1", "--out", out, match="at least")


@pytest.mark.parametrize("command", ["spectrum", "perturb", "surface", "flatness", "figures", "train"])
def test_seeds_are_not_negative(command, checkpoint, tmp_path):
    given = ("--model", "mlp") if command == "train" else (checkpoint,)
    for seed in ("-1", str(2**63)):
        refuses(
            tmp_path,
            command,
            *given,
            "--seed",
            seed,
            "--out",
            tmp_path / "out.nc",
            match="seed: expected a whole number",
        )


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--lr", "0", "--lr: expected a positive number, got 0"),
        ("--lr", "-0.1", "--lr: expected a positive number"),
        ("--lr", "nan", "--lr: expected a positive number"),
        ("--snapshot-every", "0", "--snapshot-every: expected a whole number, at least 1, got 0"),
    ],
)
def test_what_would_do_nothing(flag, value, words, tmp_path):
    refuses(tmp_path, "train", "--model", "mlp", flag, value, "--out", tmp_path / "out", match=words)
