"""The table of short runs: published accuracies at ratio 100 only, of groups where somebody has published them."""

from __future__ import annotations

import pandas as pd

from analyses.published_rows.__main__ import GROUPS, ROWS, print_table, published_of


def test_published_accuracies_are_those_of_the_ratio():
    assert published_of("ldam-drw") == {"published_lowest": 77.03, "published_highest": 79.81}  # 3 sources, 4 ratios
    assert published_of("gcl+gnm") == {}
    groups = {f"published_{group}": value for group, value in zip(GROUPS, (78.3, 94.6, 73.9, 67.7), strict=True)}
    assert published_of("imbsam").items() >= groups.items()  # of the same method under another schedule


def test_the_table_has_a_row_for_every_recipe_and_a_dash_where_nothing_is_published(capsys):
    measured = dict.fromkeys(GROUPS, 50.0) | {f"{group}_stderr": 0.5 for group in GROUPS}
    print_table(pd.DataFrame([{"recipe": f"cifar10-lt/{row}"} | measured | published_of(row) for row in ROWS]))
    header, _, *lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(ROWS)
    assert {line.count("|") for line in lines} == {header.count("|")}
    own = " | ".join(["50.0 ± 0.5"] * 4)
    assert f"| cc-sam | {own} | 81.4 to 83.9 | 81.4 / 85.6 / 79.2 / 80.3 |" in lines
    assert f"| gcl+gnm | {own} | - | - |" in lines
    assert f"| vs+sam | {own} | 82.4 | - |" in lines
