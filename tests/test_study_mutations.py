"""The study that plants changes: what it changes still parses, differs by one token, and spares messages."""

from __future__ import annotations

import ast

from analyses.mutations.__main__ import AREAS, ROOT, drawn, ordered
from analyses.mutations.sites import sites_in

TEXT = '''"""Ten is 10."""
def f(x: tuple[int, 3]) -> float:
    if x[0] < 2 and x[1] == 3:
        logger.info("%d", 4)
        raise ValueError(f"{x[5]} of {6}")
    return x[-1] ** 2 - 0.5 / (x[0] + 0.0)
'''


def test_operators_constants_and_indices_are_found_and_nothing_else():
    found = {(site.kind, site.line, site.old, site.new) for site in sites_in(TEXT)}
    assert found == {
        ("operator", 3, "<", ">="),
        ("operator", 3, "and", "or"),
        ("operator", 3, "==", "!="),
        ("index", 3, "0", "1"),
        ("index", 3, "1", "2"),
        ("constant", 3, "2", "3"),
        ("constant", 3, "3", "4"),
        ("operator", 6, "**", "*"),
        ("operator", 6, "-", "+"),
        ("operator", 6, "/", "*"),
        ("operator", 6, "+", "-"),
        ("index", 6, "1", "2"),
        ("index", 6, "0", "1"),
        ("constant", 6, "2", "3"),
        ("constant", 6, "0.5", "1.0"),
        ("constant", 6, "0.0", "1.0"),
    }
    for site in sites_in(TEXT):
        changed = site.planted(TEXT)
        ast.parse(changed)
        assert len(changed) - len(TEXT) == len(site.new) - len(site.old)


def test_draws_repeat_cover_every_area_and_are_all_different():
    changes = drawn(60, 0)
    assert changes == drawn(60, 0) != drawn(60, 1)
    assert len(set(changes)) == 60
    assert {area for area, _, _ in changes} == set(AREAS)
    for _, path, site in changes:
        text = (ROOT / path).read_text()
        ast.parse(site.planted(text))


def test_the_tests_of_a_module_come_first():
    files = ordered(AREAS["spectrum"][1], "landscape.spectrum.end_bounds")
    assert files[0] == "tests/spectrum/test_spectrum_end_bounds.py"
    assert len(files) == len(set(files)) > 20
