"""Drawing beside the computations: figures of results files in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from landscape.errors import LandscapeError

# Processes that draw at the same time, beside the one that computes.
MAX_DRAWING = max(1, min(4, (os.cpu_count() or 1) - 1))


class Drawing:
    """Figures being drawn from results files by processes of their own, while this one computes.

    A context manager: leaving it waits for them, and stops them if an error is under way.
    """

    def __init__(self) -> None:
        self._jobs: list[tuple[str, subprocess.Popen[bytes], IO[bytes]]] = []

    def start(self, out: str | Path, files: Mapping[str, Path]) -> None:
        """Draw ``files`` {name: results file} into the folder ``out``."""
        while sum(job.poll() is None for _, job, _ in self._jobs) >= MAX_DRAWING:
            time.sleep(0.05)
        named = [text for name, path in files.items() for text in (name, str(path))]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "landscape.figures", str(out), *named]
        said = tempfile.TemporaryFile()  # noqa: SIM115  (closed at exit; not a pipe, which could fill up unread)
        job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said, env=environment)
        self._jobs.append((str(out), job, said))

    def wait(self) -> None:
        """Wait for all figures; LandscapeError with the last line of what a failed process said."""
        for out, job, said in self._jobs:
            if job.wait():
                said.seek(0)
                last = said.read().decode(errors="replace").strip().splitlines()[-1:] or ["it was killed"]
                raise LandscapeError(f"drawing the figures in {out} failed: {last[0]}")

    def __enter__(self) -> Drawing:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            for _, job, said in self._jobs:
                if job.poll() is None:
                    job.kill()
                    job.wait()
                said.close()
