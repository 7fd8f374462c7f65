"""Plant changes and count those that the tests catch: ``python -m analyses.mutations --count 60 --seed 0 --out FILE``.

It works on a copy of the program and its tests, in a temporary folder.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from analyses.mutations.sites import Site, sites_in

ROOT = Path(__file__).resolve().parents[2]
# What is changed, and the tests of it: those that are run, the ones that import the changed module first.
AREAS = {
    "spectrum": ("landscape/spectrum/*.py", ["tests/spectrum"]),
    "risk": ("landscape/risk/*.py", ["tests/risk", "tests/surface", "tests/spectrum"]),
    "surface": ("landscape/surface/*.py", ["tests/surface", "tests/cli/test_cli_surface.py"]),
    "perturbation": ("landscape/perturbation.py", ["tests/test_perturbation.py"]),
    "flatness": ("landscape/flatness/*.py", ["tests/flatness", "tests/cli/test_cli_flatness.py"]),
    "optimizers": ("landscape/optimizers/*.py", ["tests/optimizers", "tests/test_training.py"]),
    "losses": ("landscape/losses/*.py", ["tests/losses", "tests/risk/test_risk_traces.py"]),
}
PATIENCE = 400.0  # seconds after which the tests of a change count as hanging, hence as failed


def drawn(count: int, seed: int, root: Path = ROOT) -> list[tuple[str, Path, Site]]:
    """Return changes, spread over the areas by their numbers of lines, over operators, constants and indices evenly."""
    chance = random.Random(seed)
    files = {area: sorted(root.glob(pattern)) for area, (pattern, _) in AREAS.items()}
    lines = {area: sum(len(path.read_text().splitlines()) for path in paths) for area, paths in files.items()}
    chosen: list[tuple[str, Path, Site]] = []
    for area, paths in files.items():
        share = max(2, round(count * lines[area] / sum(lines.values())))
        by_kind: dict[str, list[tuple[str, Path, Site]]] = {}
        for path in paths:
            for site in sites_in(path.read_text()):
                by_kind.setdefault(site.kind, []).append((area, path.relative_to(root), site))
        kinds = sorted(by_kind)
        for kind in kinds:
            chance.shuffle(by_kind[kind])
        chosen += [by_kind[kinds[number % len(kinds)]].pop() for number in range(share)]
    chance.shuffle(chosen)
    return chosen[:count]


def ordered(tests: list[str], module: str) -> list[str]:
    """Return test files, those first that name the module."""
    files: list[Path] = []
    for name in tests:
        path = ROOT / name
        files += sorted(path.glob("test_*.py")) if path.is_dir() else [path]
    names = {module, module.removesuffix(".__init__")}
    hits = {path: any(name in path.read_text() for name in names) for path in files}
    stem = module.rsplit(".", 1)[-1]
    return [str(p.relative_to(ROOT)) for p in sorted(files, key=lambda p: (not hits[p], stem not in p.stem))]


def outcome(copy: Path, tests: list[str]) -> str:
    """Return which test failed, "" if none did."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return "no end"
    if done.returncode == 0:
        return ""
    named = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return named[0].split(" - ")[0] if named else f"exit code {done.returncode}"


def main() -> None:
    """Plant, run, and write a row for each change."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=1, help="Begin at this one.")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, given.out.open("w", newline="") as file:
        copy = Path(folder) / "copy"
        for name in ("landscape", "tests", "analyses", "docs"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "CHANGELOG.md"):
            shutil.copy(ROOT / name, copy / name)
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["file", "line", "kind", "change", "source", "caught_by", "seconds"])
        num_caught = 0
        changes = list(enumerate(drawn(given.count, given.seed, copy), 1))[given.first - 1 :]
        for number, (area, path, site) in changes:
            text = (copy / path).read_text()
            (copy / path).write_text(site.planted(text))
            start = time.monotonic()
            module = ".".join(path.with_suffix("").parts)
            caught = outcome(copy, ordered(AREAS[area][1], module))
            (copy / path).write_text(text)
            num_caught += bool(caught)
            source = text.splitlines()[site.line - 1].strip()
            seconds = round(time.monotonic() - start)
            rows.writerow([path, site.line, site.kind, f"{site.old} -> {site.new}", source, caught, seconds])
            file.flush()
            print(f"{number}: {path}:{site.line} {site.old} -> {site.new}: {caught or 'SURVIVED'}", flush=True)
        print(f"{num_caught} of {len(changes)} caught")


if __name__ == "__main__":
    main()
