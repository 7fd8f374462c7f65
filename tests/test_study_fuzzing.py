"""A few hundred damaged files of every kind, the same each time: an answer in one line, or what was written."""

from __future__ import annotations

import logging

import pytest

from analyses.fuzzing.study import FAULTS, study
from analyses.fuzzing.targets import TARGETS

# Kinds whose reading trains a network, or starts a process for each file, have a few.
FEW = {"our checkpoint": 8, "run.json": 12, "state.pt": 6, "history": 4, "results, unsealed": 2, "surface .h5": 2}


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_have_an_answer(name):
    logging.disable(logging.WARNING)
    try:
        outcomes = dict(study(name, range(FEW.get(name, 25))))
    finally:
        logging.disable(logging.NOTSET)
    assert {number: outcome for number, outcome in outcomes.items() if outcome.kind in FAULTS} == {}
    assert {outcome.kind for outcome in outcomes.values()} >= ({"same"} if name == "journal block" else {"refused"})
