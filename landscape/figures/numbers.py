"""Numbers as readers want them: few digits, values with their errors, ticks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xarray as xr


def short(value: float) -> str:
    """Return a number as a reader wants it: three significant digits, the exponent only where it helps.

    Examples
    --------
    >>> short(-38.312), short(0.00012), short(334.4), short(120000.0)
    ('−38.3', '1.2e−4', '334', '1.2e5')
    """
    if not math.isfinite(value):
        return "–"
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}".replace("-", "−")
    text = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return text.replace("-", "−")


def with_error(value: float, error: float) -> str:
    """Return ``value ± error``: the error with one digit, the value to it; no error where it is not recorded.

    Examples
    --------
    >>> with_error(-100.4871, 0.07), with_error(2.4, 0.3), with_error(2.4, float("nan"))
    ('−100.49 ± 0.07', '2.4 ± 0.3', '2.4')
    """
    if not math.isfinite(value):
        return "–"
    if not math.isfinite(error):
        return short(value)
    text = short(value)
    if error > 0 and 1e-3 <= abs(value) < 1e5:
        digits = math.floor(math.log10(abs(value))) - math.floor(math.log10(float(f"{error:.1g}"))) + 1
        if digits > 3:
            text = f"{value:.{min(digits, 6)}g}".replace("-", "−")
    return f"{text} ± {short(float(f'{error:.1g}'))}"


def end_of_spectrum(dataset: xr.Dataset, name: str) -> str:
    """Return an end of one lane (``lambda_min`` or ``lambda_max``) with what holds it, or the one side that is known."""
    if name not in dataset:
        return "–"
    value, error = float(dataset[name]), float(dataset[f"{name}_error"]) if f"{name}_error" in dataset else math.nan
    is_one_sided = str(dataset.attrs.get("option_until", "")) == "verdict" or math.isinf(error)
    if math.isfinite(value) and not math.isnan(error) and is_one_sided:
        return f"{'≤' if name == 'lambda_min' else '≥'} {short(value)}"
    return with_error(value, error)


def precise(value: float) -> str:
    """Return a number with six significant digits, as for bounds that lie close together.

    Examples
    --------
    >>> precise(-4.5352512), precise(1.25e-7)
    ('−4.53525', '1.25e−07')
    """
    return f"{value:.6g}".replace("-", "−") if math.isfinite(value) else "–"


def interval(low: float, high: float) -> str:
    """Return ``[low, high]``, or a dash where it is not known."""
    return f"[{short(low)}, {short(high)}]" if math.isfinite(low) and math.isfinite(high) else "–"


def log_ticks(low: float, high: float) -> list[float]:
    """Return ticks of a logarithmic range: decades, or finer where there are fewer than four of them; at most about seven."""
    for factors in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0)):
        decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
        ticks = [factor * 10.0**k for k in decades for factor in factors if low <= factor * 10.0**k <= high]
        if len(ticks) >= 4:
            break
    return ticks[:: max(1, len(ticks) // 7)]
