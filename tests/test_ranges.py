"""Ranges as users type them."""

from __future__ import annotations

import re

import numpy as np
import pytest

from landscape.errors import LandscapeError
from landscape.ranges import parse_range


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-1:1:5", [-1, -0.5, 0, 0.5, 1]),
        ("0:1:2", [0, 1]),
        ("-0.5:1.5:3", [-0.5, 0.5, 1.5]),
        ("1e-3:2e-3:2", [1e-3, 2e-3]),
        (" -2 : 2 : 3 ", [-2, 0, 2]),
        ("-3:-1:3", [-3, -2, -1]),
    ],
)
def test_good_ranges_include_both_ends(text, expected):
    values = parse_range(text)
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-15)
    assert values.dtype == np.float64
    assert (values[0], values[-1]) == (expected[0], expected[-1])


def test_default_of_the_field_has_its_centre_at_zero():
    assert parse_range("-1:1:51")[25] == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "1:-1:0",
        "a:b:c",
        "-1:1",
        "0:0:3",
        "nan:1:3",
        "0:nan:3",
        "0:inf:3",
        "-inf:0:3",
        "0:1:1",
        "0:1:-3",
        "1:0:3",
        ":",
        "::",
        "0:1:2.5",
        "0:1:1e1",
        "0:1:3:4",
        "-1,1,5",
        "0:1:",
        ":1:3",
        "0::3",
        "0:1:x",
        "0:1e999:3",
    ],
)
def test_bad_ranges_are_refused_in_one_line_that_shows_the_range_and_a_good_one(text):
    with pytest.raises(LandscapeError, match=re.escape(f"got '{text}'")) as caught:
        parse_range(text, "--y")
    message = str(caught.value)
    assert message.startswith("--y: expected START:STOP:COUNT")
    assert "-1:1:51" in message
    assert "\n" not in message
