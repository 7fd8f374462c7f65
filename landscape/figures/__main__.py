"""Draw results files in a process of their own: ``python -m landscape.figures OUT NAME RESULTS [NAME RESULTS ...]``.

One file: every figure of it. Several: the figures that compare them. The main job starts this beside its
computations, so that drawing costs no time where a second core is idle; it loads no torch.
"""

from __future__ import annotations

import sys

from landscape.figures.saving import save_comparison_figures, save_figures
from landscape.results import load_results


def main(arguments: list[str]) -> None:
    """Draw the files named on the command line."""
    out, *files = arguments
    results = {name: load_results(path) for name, path in zip(files[::2], files[1::2], strict=True)}
    if len(results) == 1:
        save_figures(next(iter(results.values())), out)
    else:
        save_comparison_figures(results, out)


if __name__ == "__main__":
    main(sys.argv[1:])
