"""Damage files by the thousand and count what their readers make of it: ``python -m analyses.fuzzing [--number N]``.

25,500 inputs in about ten minutes on two cores. Each kind of file is read by processes with limits of time and memory,
so that what hangs or crashes costs one input. Writes ``results.csv``: counts by kind of file and outcome; what is no
answer (foreign exceptions, hangs, more than 2 GB, silently other numbers) is printed with its number, which remakes it:
``--only "torch zip" --first 17 --number 1``.
"""

from __future__ import annotations

import argparse
import collections
import csv
import json
import logging
import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from analyses.fuzzing.study import FAULTS, OUTCOMES, study
from analyses.fuzzing.targets import TARGETS

CHUNK = 500
ADDRESS_SPACE = 8 << 30


def work(name: str, numbers: range) -> None:
    """Print the outcome of each input as a line of JSON."""
    logging.disable(logging.WARNING)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    for number, outcome in study(name, numbers):
        print(json.dumps([number, *outcome]), flush=True)


def chunk(name: str, numbers: range) -> list[list[Any]]:
    """Return the outcomes of a range of inputs, read by processes of their own; one that dies costs the input it was at."""
    rows: list[list[Any]] = []
    while len(rows) < len(numbers):
        left = numbers[len(rows) :]
        command = [
            sys.executable,
            "-m",
            "analyses.fuzzing",
            "--work",
            name,
            "--first",
            str(left[0]),
            "--number",
            str(len(left)),
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
        )
        found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
        rows += found
        if len(found) < len(left):
            rows.append([left[len(found)], "foreign", "?", f"the reader died: {done.returncode} {done.stderr[-200:]}"])
    return rows


def main() -> None:
    """Parse the options; run the study."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--number", type=int, default=25_500, help="inputs in all, or of the one kind that --only names"
    )
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--only", choices=TARGETS, help="one kind of file")
    parser.add_argument("--work", choices=TARGETS, help=argparse.SUPPRESS)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.csv"))
    given = parser.parse_args()
    if given.work:
        work(given.work, range(given.first, given.first + given.number))
        return
    total = sum(target.share for target in TARGETS.values())
    names = [given.only] if given.only else list(TARGETS)
    numbers = {n: given.number if given.only else -(-given.number * TARGETS[n].share // total) for n in names}
    jobs = [
        (name, range(first, min(first + CHUNK, given.first + numbers[name])))
        for name in names
        for first in range(given.first, given.first + numbers[name], CHUNK)
    ]
    counts: dict[str, collections.Counter[str]] = {name: collections.Counter() for name in names}
    with ThreadPoolExecutor(given.processes) as pool:
        for (name, _), rows in zip(jobs, pool.map(lambda job: chunk(*job), jobs)):
            for number, kind, what, text in rows:
                counts[name][kind] += 1
                if kind in FAULTS:
                    print(f"{name} {number}: {kind} after {what}: {text}", flush=True)
    with given.out.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file", "inputs", *OUTCOMES])
        for name, found in counts.items():
            writer.writerow([name, found.total(), *(found[kind] for kind in OUTCOMES)])
    faults = sum(found[kind] for found in counts.values() for kind in FAULTS)
    print(f"{sum(found.total() for found in counts.values())} inputs, {faults} without an answer; written: {given.out}")


if __name__ == "__main__":
    main()
