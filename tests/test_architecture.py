"""The layers of docs/architecture.md hold in the code, and so do the promises that every module makes."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "landscape"
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in FILES]
TREES = {name: ast.parse(path.read_text()) for name, path in zip(NAMES, FILES)}
PRINTS = "landscape/cli/"


def documented_layers():
    """Return [(modules, whether they may use torch)] from the table of docs/architecture.md, lowest first."""
    layers = []
    for line in (ROOT / "docs" / "architecture.md").read_text().splitlines():
        row = re.fullmatch(r"\| *\d+\w? *\|(.*)\|(.*)\|", line)
        if row:
            # Only the names before the parenthesis, which may mention other modules.
            modules = [
                name for cell in re.sub(r"\([^)]*\)", "", row[1]).split(",") for name in re.findall(r"`(.+?)/?`", cell)
            ]
            layers.append((modules, row[2].strip()))
    return layers


LAYERS = documented_layers()
RANK = {module: rank for rank, (modules, _) in enumerate(LAYERS) for module in modules}


def unit(module):
    """Return the row's name of a dotted module: ``landscape.risk.model`` -> ``risk``."""
    return module.split(".")[1] if "." in module else ""


def module_name(name):
    parts = list(Path(name).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(tree, here):
    """Yield (dotted module of ours or top-level package of others, line) of every import, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{here}:{node.lineno}: relative import"
            if node.module == "landscape":
                for alias in node.names:
                    yield f"landscape.{alias.name}", node.lineno
            else:
                yield node.module, node.lineno


def top_level(tree):
    """Return the statements that run on import: not the bodies of functions, not what only a type checker reads."""
    body, stack = [], list(tree.body)
    while stack:
        node = stack.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            stack.extend(node.orelse)
            continue
        body.append(node)
        stack.extend(child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt))
    return ast.Module(body=[node for node in body if isinstance(node, (ast.Import, ast.ImportFrom))], type_ignores=[])


def upward_imports(trees):
    found = []
    for name, tree in trees.items():
        here = unit(module_name(name))
        for imported, line in imports_of(tree, name):
            if not imported.startswith("landscape.") or not here:
                continue
            there = unit(imported)
            if there != here and there in RANK and RANK[there] >= RANK[here]:
                found.append(f"{name}:{line}: {here} (layer {RANK[here]}) imports {there} (layer {RANK[there]})")
    return found


# ---- layers -------------------------------------------------------------------------------------------------------


def test_the_documented_table_is_read_and_has_a_row_for_every_module():
    assert len(LAYERS) >= 14
    assert RANK["errors"] == 0
    assert RANK["cli"] == len(LAYERS) - 1
    units = {unit(module_name(name)) for name in NAMES} - {""}
    assert units == set(RANK)


def test_imports_point_down_the_layers_and_never_up_or_sideways():
    assert upward_imports(TREES) == []


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("landscape/errors.py", "import landscape.risk"),
        ("landscape/ranges.py", "from landscape.results import Journal"),
        ("landscape/losses/registry.py", "from landscape import models"),
        ("landscape/risk/model.py", "def late():\n    from landscape.pipeline import analyse"),
    ],
)
def test_an_import_that_points_up_or_sideways_would_be_found(name, line):
    assert len(upward_imports({name: ast.parse(line)})) == 1


def test_our_modules_that_are_imported_exist():
    for name, tree in TREES.items():
        for imported, line in imports_of(tree, name):
            if imported.startswith("landscape.") and imported != "landscape.__version__":
                assert importlib.util.find_spec(imported.rpartition(".")[0]), f"{name}:{line}: {imported}"


# ---- torch --------------------------------------------------------------------------------------------------------


def torch_use(modules, cell):
    """Return {module: yes, no, at call time only} of a row; a cell may also name the only modules that may."""
    named = re.fullmatch(r"(`.+`) only", cell)
    if named:
        return {module: "yes" if f"`{module}`" in named[1] else "no" for module in modules}
    assert cell in ("yes", "no", "at call time only"), cell
    return dict.fromkeys(modules, cell)


TORCH = {module: use for modules, cell in LAYERS for module, use in torch_use(modules, cell).items()}
NO_TORCH = sorted(module for module, use in TORCH.items() if use == "no")
AT_CALL_TIME = sorted(module for module, use in TORCH.items() if use == "at call time only")


def test_the_table_says_who_may_use_torch():
    assert {"figures", "report", "results", "ranges"} <= set(NO_TORCH)
    assert {"errors", "randomness", "cli"} == set(AT_CALL_TIME)


@pytest.mark.parametrize("module", NO_TORCH)
def test_modules_without_torch_never_import_it(module):
    for name, tree in TREES.items():
        if unit(module_name(name)) == module:
            torches = [line for imported, line in imports_of(tree, name) if imported.split(".")[0] == "torch"]
            assert torches == [], f"{name} imports torch in lines {torches}"


@pytest.mark.parametrize("module", AT_CALL_TIME)
def test_modules_with_torch_at_call_time_do_not_import_it_at_the_top(module):
    for name, tree in TREES.items():
        if unit(module_name(name)) == module:
            assert not [
                line for imported, line in imports_of(top_level(tree), name) if imported.split(".")[0] == "torch"
            ]


@pytest.mark.parametrize(
    "module",
    [
        "landscape",
        "landscape.cli",
        *(f"landscape.{name}" for name in NO_TORCH),
        "landscape.errors",
        "landscape.randomness",
    ],
)
def test_importing_loads_no_torch(module):
    """In a fresh interpreter; the command line must answer ``--help`` in a moment."""
    if importlib.util.find_spec(module) is None:
        assert module == "landscape.cli"
        return
    code = f"import sys, {module}; sys.exit('torch was loaded' if 'torch' in sys.modules else 0)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr


def test_every_public_name_exists():
    import landscape

    for name in landscape.__all__:
        assert getattr(landscape, name) is not None
    assert set(landscape.__all__) == set(dir(landscape))
    with pytest.raises(AttributeError, match="no attribute 'measure_everything_else'"):
        landscape.measure_everything_else  # noqa: B018


# ---- what no module may do ----------------------------------------------------------------------------------------


DRAWS = {"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson"}
IN_PLACE_DRAWS = {"normal_", "uniform_", "random_", "bernoulli_", "exponential_", "cauchy_", "log_normal_"}
NUMPY_HARMLESS = {
    "default_rng",
    "RandomState",
    "get_state",
    "set_state",
}  # a generator of its own; the state, to restore it
GLOBAL = {"torch.seed", "torch.manual_seed", "torch.random.manual_seed", "torch.cuda.manual_seed", "random.seed"}


def global_draws(tree):
    """Return the lines that draw from, or seed, a global generator."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        owner, _, method = called.rpartition(".")
        has_generator = any(keyword.arg == "generator" for keyword in node.keywords)
        like = method.removesuffix("_like")
        if (
            (called in GLOBAL or called == "torch.cuda.manual_seed_all")
            or (owner == "torch" and like in DRAWS and not has_generator)
            or (method in IN_PLACE_DRAWS and owner and not has_generator)
            or (owner.endswith("nn.init") and ("normal" in method or "uniform" in method) and not has_generator)
            or (owner in ("np.random", "numpy.random") and method not in NUMPY_HARMLESS)
            or (called in ("np.random.default_rng", "np.random.RandomState") and not node.args)
            or (owner == "random" and method in ("random", "randint", "choice", "shuffle", "gauss", "uniform"))
        ):
            found.append((node.lineno, called))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_no_global_random_numbers(name):
    assert global_draws(TREES[name]) == []


@pytest.mark.parametrize(
    "line",
    [
        "torch.manual_seed(0)",
        "torch.randn(3)",
        "torch.rand_like(x)",
        "torch.randperm(5)",
        "x.normal_()",
        "x.data.uniform_(-1, 1)",
        "nn.init.kaiming_normal_(w)",
        "np.random.seed(0)",
        "np.random.randn(3)",
        "np.random.default_rng()",
        "random.shuffle(x)",
    ],
)
def test_a_global_random_number_would_be_found(line):
    assert len(global_draws(ast.parse(line))) == 1


@pytest.mark.parametrize("line", ["torch.randn(3, generator=g)", "np.random.default_rng(3)", "rng.normal(size=3)"])
def test_an_explicit_generator_is_fine(line):
    assert global_draws(ast.parse(line)) == []


def test_layers_are_constructed_under_a_forked_generator():
    """``torch.nn`` initialises from the global generator: only code that restores it may build layers."""
    forks = [name for name, path in zip(NAMES, FILES) if "fork_rng" in path.read_text()]
    assert "landscape/models/registry.py" in forks
    allowed = ("landscape/models/", "landscape/risk/", "landscape/optimizers/normalising.py")
    assert all(name.startswith(allowed) for name in forks)


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith(PRINTS)])
def test_only_the_command_line_prints_and_exits(name):
    calls = {ast.unparse(node.func) for node in ast.walk(TREES[name]) if isinstance(node, ast.Call)}
    assert calls.isdisjoint({"print", "sys.exit", "exit", "quit", "os._exit", "breakpoint", "sys.stdout.write"})


@pytest.mark.parametrize("name", NAMES)
def test_files_are_short_and_named_by_what_they_are_about(name):
    lines = (ROOT / name).read_text().count("\n")
    assert lines <= 400, f"{name} has {lines} lines"
    assert Path(name).stem not in {"utils", "helpers", "common", "misc", "util", "helper", "tools"}


@pytest.mark.parametrize("name", NAMES)
def test_every_public_object_has_a_docstring_and_no_star_imports(name):
    tree = TREES[name]
    assert ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{name}: {node.name}"
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.names[0].name == "*"]


def test_tests_are_not_packages():
    assert list((ROOT / "tests").rglob("__init__.py")) == []
