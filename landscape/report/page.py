"""The page: figures as plotly descriptions, words from ``summary``, put together by one template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import plotly.offline
import xarray as xr
from markupsafe import Markup

from landscape.errors import LandscapeError
from landscape.figures import CATALOGUE, Entry, plot_history
from landscape.figures.catalogue import SECTIONS, available
from landscape.figures.style import VERDICT_LOOKS
from landscape.files import write_bytes
from landscape.report import summary

_KNOWN = (
    "title",
    "description",
    "created",
    "commands",
    "config",
    "versions",
    "seeds",
    "checkpoints",
    "timings",
    "warnings",
    "histories",
)
_MAX_SCENES = 9  # browsers keep about sixteen WebGL scenes alive on a page


@dataclass(frozen=True)
class _Shown:
    """A figure on the page: its section, anchor, how to read it, its plotly description and height in pixels."""

    section: str
    anchor: str
    reading: str
    description: Markup
    height: int


def write_report(
    path: str | Path, results: Mapping[str, xr.DataTree], context: Mapping[str, Any] | None = None, *, cdn: bool = False
) -> Path:
    """Write one HTML page about one or several models; it needs no other file and asks no server.

    Parameters
    ----------
    path
        The file to write.
    results
        ``{name: results}``, a name usually being an optimizer. Groups that are missing are left out of the page.
    context
        How the results came about; every key is optional: ``title``, ``description`` (a sentence or a mapping of
        facts), ``created`` (text), ``commands`` (list), ``config`` (mapping), ``versions`` (mapping or text), ``seeds``
        (mapping or number), ``checkpoints`` ({name: hash}), ``timings`` ({stage: seconds} or
        {name: {stage: seconds}}), ``warnings``
        (list), ``histories`` ({name: DataFrame}). Other keys are printed as they are.
    cdn
        Load plotly.js from its public server instead of holding it: a small page that is not self-contained.

    Returns
    -------
    pathlib.Path
        The file written.

    Raises
    ------
    LandscapeError
        If there are no results.
    """
    if not results:
        raise LandscapeError("expected the results of at least one model, got none: measure first")
    facts = dict(context or {})
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("landscape.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    spectra = available(results, Entry("verdicts", "spectrum", lambda: None, "", needs="verdict"))
    text = environment.get_template("page.html.jinja").render(
        title=facts.get("title") or "Loss landscape per class",
        description=facts.get("description") or "",
        created=str(facts.get("created") or ""),
        names=list(results),
        summaries=[summary.summarise(name, spectrum) for name, spectrum in spectra.items()],
        overview=summary.overview(spectra) if spectra else [],
        matrix=summary.verdict_matrix(spectra) if spectra else [],
        matrix_names=list(spectra),
        tables=[(name, *summary.lane_rows(tree), summary.lane_proofs(tree)) for name, tree in results.items()],
        looks=VERDICT_LOOKS,
        glossary=summary.GLOSSARY,
        probabilities=sorted(
            {str(d.attrs["lower_bound_probability"]) for d in spectra.values() if "lower_bound_probability" in d.attrs}
        ),
        compared=_compared(results, facts.get("histories") or {}),
        single=[(name, _single(f"m{k}", tree, name)) for k, (name, tree) in enumerate(results.items())],
        warnings=[str(text) for text in facts.get("warnings") or []] + summary.found_warnings(results),
        redo=_redo(facts),
        script_source=" https://cdn.plot.ly" if cdn else "",
        plotly_script=_plotly_script(cdn),
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, text.encode())
    return path


def _plotly_script(cdn: bool) -> Markup:
    if not cdn:
        return Markup("<script>{}</script>").format(Markup(plotly.offline.get_plotlyjs()))
    address = f"https://cdn.plot.ly/plotly-{plotly.offline.get_plotlyjs_version()}.min.js"
    return Markup('<script src="{}" charset="utf-8"></script>').format(address)


def _compared(results: Mapping[str, xr.DataTree], histories: Mapping[str, Any]) -> list[_Shown]:
    if len(results) < 2:
        return (
            [_shown("Training", "training", "How training went.", plot_history(histories, backend="plotly"))]
            if histories
            else []
        )
    shown = []
    if histories:
        reading = "How training went: a line per optimizer."
        shown.append(_shown("Training", "all-training", reading, plot_history(histories, backend="plotly")))
    for entry in CATALOGUE:
        data = available(results, entry)
        crowded = entry.name == "surface-3d" and 3 * len(data) > _MAX_SCENES
        if entry.on_page and entry.compared and len(data) > 1 and not crowded:
            figure = _plotted(entry, data)
            if figure is not None:
                shown.append(_shown(SECTIONS[entry.group], f"all-{entry.name}", entry.reading, figure))
    return shown


def _single(prefix: str, tree: xr.DataTree, name: str) -> list[_Shown]:
    shown = []
    for entry in CATALOGUE:
        data = available({name: tree}, entry)
        if entry.on_page and entry.single and data:
            figure = _plotted(entry, data)
            if figure is not None:
                shown.append(_shown(SECTIONS[entry.group], f"{prefix}-{entry.name}", entry.reading, figure))
    return shown


def _plotted(entry: Entry, data: Mapping[str, xr.Dataset]) -> Any:
    """Return the figure, or None where the results hold nothing that it could draw."""
    try:
        return entry.plot(data, backend="plotly", **entry.options)
    except LandscapeError:
        return None


def _shown(section: str, anchor: str, reading: str, figure: Any) -> _Shown:
    figure.layout.template = None
    return _Shown(section, anchor, reading, _embedded(figure.to_json()), int(figure.layout.height))


def _embedded(text: str) -> Markup:
    """Return JSON that cannot end the script element it stands in, whatever a class is called."""
    text = text.replace("\\u002f", "/")  # plotly escapes it in base64 data, six bytes for one
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _redo(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of the last section: command lines, then (heading, rows) tables, then JSON blocks."""
    tables = []
    for key, heading in (
        ("checkpoints", "Checkpoints"),
        ("seeds", "Seeds"),
        ("versions", "Versions"),
        ("timings", "Timings"),
    ):
        value = facts.get(key)
        if value not in (None, "", {}, []):
            tables.append((heading, _flat(value, seconds=key == "timings")))
    blocks = []
    if facts.get("config"):
        blocks.append(("Resolved configuration", json.dumps(facts["config"], indent=2, default=str)))
    rest = {key: value for key, value in facts.items() if key not in _KNOWN}
    if rest:
        blocks.append(("Further facts", json.dumps(rest, indent=2, default=str)))
    return {"commands": [str(command) for command in facts.get("commands") or []], "tables": tables, "blocks": blocks}


def _flat(value: Any, *, seconds: bool, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [
            row
            for key, inner in value.items()
            for row in _flat(inner, seconds=seconds, prefix=f"{prefix} / {key}" if prefix else str(key))
        ]
    if seconds and isinstance(value, int | float):
        return [(prefix, f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min")]
    return [(prefix, str(value))]
