"""What the command line says before it does anything: quickly, and without torch."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from cli_cases import landscape, require_one_line, succeeds

import landscape as package
from landscape.cli.app import writing_to

DATA = ("--dataset", "--data-dir", "--imbalance-ratio", "--mean", "--std", "--model", "--device", "--json")
TRAINING = ("--out", "--loss", "--epochs", "--seed", "--dry-run")
ANALYSIS = ("--out", "--preset", "--split", "--max-per-class", "--lanes", "--group-average", "--params", "--dtype")
ANALYSIS = (*ANALYSIS, "--seed", "--dry-run", "CKPT")
COMMANDS = {
    "run": (*DATA, *TRAINING, "--optimizers", "--preset", "--lanes", "--split", "--max-per-class"),
    "train": (*DATA, *TRAINING, "--optimizer", "--resume"),
    "inspect": (*DATA, "CKPT"),
    "spectrum": (*DATA, *ANALYSIS),
    "perturb": (*DATA, *ANALYSIS),
    "flatness": (*DATA, *ANALYSIS, "--measures", "--rho", "--num-pairs", "--batch-size"),
    "surface": (*DATA, *ANALYSIS, "--kind", "--directions", "--x", "--y"),
    "figures": (*DATA, *ANALYSIS),
    "compare": ("DIR", "--out", "--json"),
    "draw": ("FILE", "--out", "--order", "--json"),
    "export": ("FILE", "--out", "--group", "--lanes", "--pair", "--variable", "--order", "--json"),
}


def in_a_fresh_interpreter(code: str) -> float:
    """Run code that must not load torch; return the least seconds of three runs.

    Seconds of a processor, not of the clock: what a user waits who has one to himself, also where the tests have not.
    """
    seconds = []
    for _ in range(3):
        before = os.times()
        result = subprocess.run(
            [sys.executable, "-c", f"{code}\nimport sys\nassert 'torch' not in sys.modules"],
            capture_output=True,
            text=True,
            check=False,
        )
        after = os.times()
        seconds.append(after.children_user - before.children_user + after.children_system - before.children_system)
        assert result.returncode == 0, result.stderr
    return min(seconds)


def test_importing_the_package_loads_no_torch_and_takes_less_than_half_a_second():
    assert in_a_fresh_interpreter("import landscape") < 0.5


def test_the_help_loads_no_torch_and_takes_less_than_a_second():
    code = "import sys; sys.argv = ['landscape', '--help']\nfrom landscape.cli import main\n"
    assert in_a_fresh_interpreter(f"{code}try: main()\nexcept SystemExit as stop: assert stop.code == 0") < 1


def test_the_version():
    assert succeeds("--version") == f"{package.__version__}\n"


def test_the_help_names_every_command():
    text = succeeds("--help")
    for command in COMMANDS:
        assert f" {command} " in text


def test_without_arguments_the_help_is_printed():
    outcome = landscape()
    assert "compare" in outcome.out
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_names_its_options(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    words = set(succeeds(command, "--help").replace("{", " ").replace("}", " ").replace(".", " ").split())
    assert set(COMMANDS[command]) - words == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_option_is_refused(command):
    require_one_line(landscape(command, "--colour", "red"), "--colour")


def test_a_misspelt_option_is_answered_with_the_right_one():
    require_one_line(landscape("spectrum", "x.pt", "--out", "y.nc", "--lane", "tail"), "--lane.*--lanes")


def test_an_unknown_command_is_refused():
    require_one_line(landscape("spectra"), "spectra.*spectrum")


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "inspect"])
def test_a_missing_out_is_named(command):
    arguments = [] if command in ("run", "train") else ["x"]
    require_one_line(landscape(command, *arguments), "--out")


@pytest.mark.parametrize("command", ["inspect", "spectrum", "perturb", "flatness", "surface", "figures"])
def test_a_missing_checkpoint_argument_is_named(command):
    arguments = [] if command == "inspect" else ["--out", "x"]
    require_one_line(landscape(command, *arguments), "CKPT")


@pytest.mark.parametrize(("option", "value"), [("--epochs", "many"), ("--lr", "fast"), ("--seed", "1.5")])
def test_a_value_of_the_wrong_kind_names_its_option(option, value):
    require_one_line(landscape("train", "--out", "x", option, value), option)


def test_processes_that_probe_one_folder_at_the_same_time_do_not_disturb_each_other(tmp_path):
    def probe(_: int) -> None:
        with writing_to(tmp_path / "out", is_file=False):
            pass

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(probe, range(400)))
    assert list((tmp_path / "out").iterdir()) == []


def test_text_that_the_terminal_cannot_hold_is_spelled_out(checkpoint, tmp_path):
    command = [sys.executable, "-c", "from landscape.cli import main; main()", "perturb", str(checkpoint)]
    command += ["--lanes", "tail", "--max-per-class", "2", "--num-draws", "4", "--out", str(tmp_path / "p.nc")]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert " +- " in done.stdout
    assert done.stdout.isascii()


def test_an_interruption_while_the_command_line_is_loaded_is_one_line(tmp_path):
    """A module of the command line that interrupts stands for a user who does."""
    code = (
        "import sys\n"
        "class Interrupts:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'typer':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupts())\n"
        "from landscape.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "interrupted before anything began\n"


def test_the_entry_point_is_the_function_however_often_it_is_imported():
    code = "import landscape.cli.entry\nfrom landscape.cli import main\nassert callable(main), main"
    subprocess.run([sys.executable, "-c", code], check=True)
