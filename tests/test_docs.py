"""The documentation is true: its examples run, its commands parse, its links lead somewhere, its lists are complete."""

from __future__ import annotations

import ast
import csv
import dataclasses
import doctest
import importlib
import inspect
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import nbformat
import numpy as np
import pytest
import torch
import typer
from nbclient import NotebookClient

import landscape
import landscape.surface
from landscape.cli import options as opt
from landscape.cli.entry import app
from landscape.data import DATASETS, GROUP_RULES, SAMPLERS, TRANSFORMS
from landscape.figures import CATALOGUE
from landscape.losses import CLASS_WEIGHTS, LOSSES, PUBLISHED_LOSSES
from landscape.models import MODELS
from landscape.optimizers import OPTIMIZERS
from landscape.pipeline import RunSpec
from landscape.plan import PRESETS
from landscape.reconstruction import RECONSTRUCTIONS
from landscape.results import SCHEMA
from landscape.spectrum import VERDICTS
from landscape.training import METHODS, SCHEDULES, SECOND_STAGES

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)

# The convention for examples that need files we do not ship: the first line says so, and why.
NOT_RUN = re.compile(r"# not run by the tests: \w+")
MOST_NOT_RUN = 2
# architecture.md lists signatures, which are no programs.
PAGES_THAT_RUN = [page for page in PAGES if page.name != "architecture.md"]


def page_id(page):
    return page.name


def blocks(page, language):
    """Return [(number of the first line, text)] of the page's blocks in a language."""
    text = page.read_text()
    return [(text[: m.start()].count("\n") + 2, m[2]) for m in FENCE.finditer(text) if m[1] == language]


# ---- examples ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [p for p in PAGES_THAT_RUN if blocks(p, "python")], ids=page_id)
def test_the_examples_of_a_page_run(page, tmp_path, monkeypatch):
    """One session per page, as the pages promise."""
    import matplotlib
    import matplotlib.pyplot as plt

    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    session = {"__name__": "__example__"}
    for line, text in blocks(page, "python"):
        # Line numbers of the page, so that a traceback leads to the example.
        code = compile("\n" * (line - 1) + text, str(page), "exec")
        if not NOT_RUN.match(text):
            exec(code, session)
    plt.close("all")


def test_few_examples_are_left_out_and_each_says_why():
    left_out = [text for page in PAGES for _, text in blocks(page, "python") if NOT_RUN.match(text)]
    assert len(left_out) <= MOST_NOT_RUN
    for text in left_out:
        ast.parse(text)


def documented_modules():
    names = ["landscape", *(m.name for m in pkgutil.walk_packages(landscape.__path__, "landscape."))]
    sources = {name: Path(importlib.util.find_spec(name).origin).read_text() for name in names}
    return [name for name, source in sources.items() if ">>>" in source]


@pytest.mark.parametrize("name", documented_modules())
def test_the_examples_of_a_module_run(name):
    """A docstring may take ``torch`` and ``np`` for granted."""
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs={"torch": torch, "np": np})
    assert result.attempted > 0
    assert result.failed == 0


# ---- commands ---------------------------------------------------------------------------------------------------

COMMAND = typer.main.get_command(app)


class Typed(NamedTuple):
    """A command as a page shows it."""

    page: str
    line: int
    words: tuple[str, ...]


def typed_commands():
    found = []
    for page in PAGES:
        for start, text in blocks(page, "bash"):
            for number, line in enumerate(text.splitlines()):
                for part in line.split("&&"):
                    words = shlex.split(part, comments=True)
                    if words and Path(words[0]).name == "landscape":
                        found.append(Typed(page.name, start + number, tuple(words[1:])))
    return found


TYPED = typed_commands()


def test_every_command_is_shown():
    assert {command.words[0] for command in TYPED} == set(COMMAND.commands)


@pytest.mark.parametrize("command", TYPED, ids=lambda c: f"{c.page}:{c.line}")
def test_a_command_is_what_the_program_accepts(command, tmp_path, monkeypatch):
    """Parses, and every name and number in it passes the validation that the command does first."""
    name, *arguments = command.words
    given = COMMAND.commands[name].make_context(name, arguments).params
    if name == "train":
        spec = opt.train_spec(given)
        assert given["resume"] or spec.to_dict()
    elif name == "run":
        names = opt.parse_names(given["optimizers"], "--optimizers")
        RunSpec(opt.train_spec(given), names, opt.analysis_spec(given), given["split"], given["objective"])
    elif name == "cost":
        opt.train_spec(given)
    elif name not in ("compare", "draw", "export", "recipes"):
        opt.checkpoint_source(given["checkpoint"], given)
        assert "preset" not in given or opt.analysis_spec(given)


def test_both_commands_of_the_readme_are_one_line_each():
    """A fresh machine needs one copied line for the main job and one for the tests."""
    lines = [text.strip() for _, text in blocks(ROOT / "README.md", "bash")]
    assert "python -m venv .venv && .venv/bin/pip install . && .venv/bin/landscape run --out out" in lines
    assert 'python -m venv .venv && .venv/bin/pip install -e ".[test]" && .venv/bin/python -m pytest' in lines


# ---- lists ------------------------------------------------------------------------------------------------------


def listed(page, word):
    return f"`{word}" in (ROOT / page).read_text()


@pytest.mark.parametrize("name", sorted(COMMAND.commands))
def test_the_reference_lists_every_option(name):
    text = (ROOT / "docs" / "reference.md").read_text()
    flags = {flag for p in COMMAND.commands[name].params for flag in p.opts if flag.startswith("--")}
    missing = [flag for flag in flags - {"--help"} if not re.search(rf"`{flag}[ `]", text)]
    assert missing == [], f"docs/reference.md lacks options of 'landscape {name}'"


@pytest.mark.parametrize(
    "registry",
    [
        DATASETS,
        GROUP_RULES,
        TRANSFORMS,
        SAMPLERS,
        MODELS,
        LOSSES,
        CLASS_WEIGHTS,
        PUBLISHED_LOSSES,
        OPTIMIZERS,
        METHODS,
        SCHEDULES,
        SECOND_STAGES,
        PRESETS,
        [entry.name for entry in CATALOGUE],
        SCHEMA,
        RECONSTRUCTIONS,
    ],
    ids=[
        "datasets",
        "groups",
        "transforms",
        "samplers",
        "models",
        "losses",
        "class weights",
        "published losses",
        "optimizers",
        "methods",
        "schedules",
        "second stages",
        "presets",
        "figures",
        "results",
        "reconstructions",
    ],
)
def test_the_reference_lists_every_name(registry):
    assert [name for name in registry if not listed("docs/reference.md", f"{name}`")] == []


def test_the_reference_lists_public_names_variables_and_rule_options():
    public = [name for name in landscape.__all__ if not name.startswith("__")]
    assert [name for name in public if not listed("docs/reference.md", f"ls.{name}")] == []
    variables = {variable for group in SCHEMA.values() for variable in group}
    assert [name for name in variables if not listed("docs/reference.md", f"{name}`")] == []
    for name, rule in OPTIMIZERS.items():
        options = [field.name for field in dataclasses.fields(rule)]
        assert [option for option in options if not listed("docs/reference.md", f"{option}=")] == [], name
    for name, loss in LOSSES.items():
        options = [option for option in inspect.signature(loss).parameters if option != "class_counts"]
        assert [option for option in options if not listed("docs/reference.md", f"{option}=")] == [], name


@pytest.mark.parametrize("package", ["flatness", "losses", "risk", "surface"])
def test_the_architecture_names_every_module_of_a_package(package):
    names = [path.stem for path in (ROOT / "landscape" / package).glob("*.py") if path.stem != "__init__"]
    assert [name for name in names if not listed("docs/architecture.md", f"{name}`")] == []


def test_what_the_reference_names_of_a_package_exists_and_no_figure_is_left_out():
    text = (ROOT / "docs" / "reference.md").read_text()
    rows = re.findall(r"^\| `landscape\.surface`, \w+ \|(.*)\|$", text, re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert len(named) > 20
    assert [name for name in named if name not in landscape.surface.__all__] == []
    plots = [name for name in landscape.figures.__all__ if name.startswith(("plot_", "save_"))]
    assert [name for name in plots if not listed("docs/reference.md", f"{name}`")] == []


def test_the_numbers_about_refined_planes_are_those_of_the_benchmark():
    """Random planes of 51 x 51 points, all lanes deciding: three networks, six seeds each."""
    with open(ROOT / "analyses" / "benchmarks" / "refinement.csv") as file:
        rows = [row for row in csv.DictReader(file) if (row["plane"], row["deciding"]) == ("unit", "every lane")]
    counts = [int(row["evaluations"]) for row in rows]
    errors = [max(float(row[f"{lane}_error"]) for lane in ("class", "group", "all")) for row in rows]
    met = sum(error <= 0.01 for error in errors)
    for page in ("README.md", "docs/how-to.md", "docs/numerics.md"):
        text = " ".join((ROOT / page).read_text().split())
        assert f"{min(counts)} to {max(counts)}" in text, page
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"in {met} of {len(rows)} runs to 1 %" in readme
    assert f"in the other to {100 * max(errors):.1f} %" in readme


def test_the_readme_explains_every_verdict_and_names_every_method():
    assert [verdict for verdict in VERDICTS if not listed("README.md", f"{verdict}` |")] == []
    assert [name for name in OPTIMIZERS if not listed("README.md", f"{name}` |")] == []
    assert [name for name in LOSSES if not listed("README.md", f"{name}`")] == []


def test_the_changelog_knows_this_version():
    assert landscape.__version__ in (ROOT / "CHANGELOG.md").read_text()


# ---- links and images -------------------------------------------------------------------------------------------

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def anchors(page):
    """Return the anchors that a page's headings get."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


def prose(page):
    return FENCE.sub("", page.read_text())


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_the_links_of_a_page_lead_somewhere(page):
    for target in LINK.findall(prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        goal = (page.parent / path).resolve() if path else page
        assert goal.is_file(), f"{page.name}: {target}"
        assert goal.is_relative_to(ROOT), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(goal), f"{page.name}: {target}"


def test_images_are_small_and_all_are_used():
    images = sorted((ROOT / "docs" / "images").iterdir())
    shown = {(page.parent / t).resolve() for page in PAGES for t in LINK.findall(prose(page)) if t.endswith(".png")}
    assert shown == set(images)
    for image in images:
        assert image.read_bytes().startswith(b"\x89PNG")
        assert image.stat().st_size < 300_000


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=page_id)
def test_pages_name_no_machine(page):
    assert re.findall(r"/(?:home|root|work|opt|tmp|Users|mnt)/\w+", page.read_text()) == []


# ---- notebook ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", NOTEBOOKS, ids=page_id)
def test_a_notebook_is_stored_with_its_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert {"image/png", "text/html"} <= kinds
    assert path.stat().st_size < 1_500_000


# Tornado and zmq, which the client stands on, warn about their own use of event loops.
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=page_id)
def test_a_notebook_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()


def test_importing_the_package_and_asking_for_help_load_no_torch():
    """As the reference says."""
    code = "import sys, landscape, landscape.cli.entry; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
