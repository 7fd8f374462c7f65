import json
import re
from html.parser import HTMLParser

import pandas as pd
import pytest
import synthetic_results as synthetic
import xarray as xr

from landscape.errors import LandscapeError
from landscape.figures.catalogue import CATALOGUE, SECTIONS
from landscape.report import write_report
from landscape.report.page import _embedded
from landscape.report.summary import found_warnings, lane_rows, overview, summarise

CONTEXT = {
    "title": "A study <of> tails",
    "description": {"data": "digits-lt"},
    "commands": ["landscape run --out results"],
    "config": {"epochs": 3},
    "versions": {"numpy": "2.0"},
    "seeds": 17,
    "checkpoints": {"sgd": "deadbeef"},
    "timings": {"sgd": {"train": 61.0, "surface": 600.0}},
    "warnings": ["only five images"],
    "histories": {"sgd": pd.DataFrame({"epoch": [0, 1], "train_loss": [1.0, 0.5]})},
    "machine": "two cores",
}


class Page(HTMLParser):
    """What a browser would load, run and show."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.figures, self.words, self._figure, self._hidden = [], {}, [], None, False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.addresses += [found[key] for key in ("src", "href") if key in found]
        self._hidden = tag in ("script", "style")
        self._figure = found["id"] if found.get("type") == "application/json" else None

    def handle_endtag(self, tag):
        self._hidden, self._figure = False, None

    def handle_data(self, data):
        if self._figure:
            self.figures[self._figure] = self.figures.get(self._figure, "") + data
        elif not self._hidden:
            self.words.append(data)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = write_report(
        tmp_path_factory.mktemp("report") / "new" / "page.html", synthetic.trees(("sgd", "sam")), CONTEXT
    )
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def test_page_asks_no_server(written):
    text, page = written
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert text.count("plotly.js v") == 1
    assert "default-src 'none'" in text


def test_page_says_every_lane_and_verdict_and_how_to_redo_it(written):
    words = " ".join(written[1].words)
    for lane in (*synthetic.CLASS_NAMES, "head", "medium", "tail", "all"):
        assert lane in words
    for verdict in ("saddle", "slope", "no negative curvature", "undecided"):
        assert verdict in words
    for fact in (
        "landscape run --out results",
        '"epochs": 3',
        "deadbeef",
        "17",
        "10.0 min",
        "only five images",
        "two cores",
    ):
        assert fact in words
    assert "A study <of> tails" in words


def test_a_lane_without_verdict_is_explained_counted_and_warned_of(tmp_path):
    tree = synthetic.tree("sgd")
    spectrum = tree["spectrum"].to_dataset()
    spectrum["verdict"] = ("lane", ["refused"] * spectrum.sizes["lane"])
    small = xr.DataTree.from_dict({"accuracy": tree["accuracy"].to_dataset(), "spectrum": spectrum})
    text = write_report(tmp_path / "page.html", {"sgd": small}, {}).read_text(encoding="utf-8")
    assert "10 refused" in text
    assert "the operator changed from product to product" in text
    assert "augmentation drawn anew leaves no operator to judge" in text


def test_figures_are_complete_descriptions(written):
    figures = {name.removesuffix("-data"): json.loads(text) for name, text in written[1].figures.items()}
    for name in ("all-spectrum", "all-contours", "all-training", "m0-surface-3d", "m1-fluctuation", "m1-eigen-plane"):
        assert figures[name]["data"], name
        assert figures[name]["layout"]["height"] > 100
        assert f'id="{name}"' in written[0]


@pytest.mark.parametrize("name", ["<img src=x onerror=alert(1)>", "</script><script>alert(1)</script>", 'a"b&c'])
def test_class_names_stay_text(tmp_path, name):
    tree = synthetic.tree("sgd", (name, *synthetic.CLASS_NAMES[1:]))
    small = xr.DataTree.from_dict({group: tree[group].to_dataset() for group in ("accuracy", "spectrum")})
    text = write_report(tmp_path / "page.html", {"<b>sgd</b>": small}, {}).read_text(encoding="utf-8")
    own = text.replace(text[text.index("<script>/*") : text.index("</script>")], "") if "<script>/*" in text else text
    assert "<img src=x" not in own
    assert "<script>alert" not in own
    assert "<b>sgd</b>" not in own
    page = Page(text)
    assert name in " ".join(page.words)
    assert all(json.loads(figure) for figure in page.figures.values())


def test_embedded_json_cannot_end_its_element():
    text = json.dumps({"name": "</script><!-- & \u2028"}, ensure_ascii=False)
    assert not set(_embedded(text)) & set("<>&\u2028")
    assert json.loads(_embedded(text)) == json.loads(text)


def test_one_model_with_little_measured_needs_no_context(tmp_path):
    tree = xr.DataTree.from_dict({"accuracy": synthetic.accuracy("sgd")})
    text = write_report(tmp_path / "page.html", {"sgd": tree}).read_text(encoding="utf-8")
    assert "no spectrum was measured" in text
    assert 'role="tablist"' not in text
    with pytest.raises(LandscapeError, match="got none"):
        write_report(tmp_path / "page.html", {})


def test_small_page_names_its_one_server(tmp_path):
    tree = xr.DataTree.from_dict({"accuracy": synthetic.accuracy("sgd")})
    path = write_report(tmp_path / "page.html", {"sgd": tree}, cdn=True)
    outside = [a for a in Page(path.read_text(encoding="utf-8")).addresses if a.startswith("http")]
    assert len(outside) == 1
    assert outside[0].startswith("https://cdn.plot.ly/plotly-")
    assert path.stat().st_size < 300_000


def test_page_of_seven_models_stays_small(tmp_path):
    names = ("sgd", "sam", "asam", "imbsam", "ccsam", "ssesam", "gnm")
    makers = {"accuracy": synthetic.accuracy, "spectrum": synthetic.spectrum, "surface": synthetic.surface}
    results = {name: xr.DataTree.from_dict({group: make(name) for group, make in makers.items()}) for name in names}
    assert write_report(tmp_path / "page.html", results, {}).stat().st_size < 12e6


def test_summary_counts_and_explains():
    spectrum = synthetic.spectrum("sgd").assign_attrs(lower_bound_probability=0.999)
    model = summarise("sgd", spectrum)
    assert model.headline == "Of 10 classes: 2 at a saddle, 6 on a slope, 1 without negative curvature, 1 undecided."
    tail = next(s for s in model.groups if s.lane.startswith("tail"))
    assert tail.verdict == "saddle"
    assert "±" in tail.sentence
    assert not any(character in s.sentence for s in model.groups for character in "{}")
    assert tail.evidence == str(spectrum["evidence"].sel(lane="tail").item())
    plane = summarise("sgd", spectrum.sel(lane=["plane"])).groups[0]
    assert "probability 0.999, every eigenvalue is above −0.02 (smallest found" in plane.sentence
    other = spectrum.copy(deep=True)
    other["verdict"] = other["verdict"].where(other["lane"] != "tail", "slope")
    assert "The tail classes: at a saddle under a; on a slope under b." in overview({"a": spectrum, "b": other})


def test_table_holds_every_number_of_a_lane():
    heads, rows = lane_rows(synthetic.tree("sgd"))
    assert len(rows) == 14
    assert all(len(row) == len(heads) for row in rows)
    tail = dict(zip(heads, next(row for row in rows if row[0] == "tail")))
    spectrum = synthetic.spectrum("sgd").sel(lane="tail")
    assert tail["n"] == "27"
    assert tail["λmin ± error"].startswith(f"−{abs(float(spectrum['lambda_min'])):.3g}")
    assert tail["verdict"] == "saddle"
    assert [head for head, text in tail.items() if text == "–"] == [h for h in heads if "decrease" in h or "step" in h]
    truck = dict(zip(heads, next(row for row in rows if row[0] == "truck")))
    assert "–" not in truck.values()
    assert truck["best own decrease along ±v_min ± se"] == "0.6 ± 0.3"  # 0.6 times 0.1 + 0.6 * 9 / 13
    assert (truck["its step (|θ|/10)"], truck["affordable decrease"]) == ("0.3", "0.15")


def test_results_without_the_later_groups_have_their_table_and_page(tmp_path):
    tree = synthetic.tree("sgd")
    old = xr.DataTree.from_dict({g: tree[g].to_dataset() for g in ("accuracy", "spectrum", "perturbation")})
    heads, rows = lane_rows(old)
    assert not [head for head in heads if "decrease" in head]
    assert len(rows) == 14
    text = write_report(
        tmp_path / "page.html", {"old": old, "new": tree_of("accuracy", "spectrum", "escape")}, {}
    ).read_text()
    assert "m1-escape-matrix" in text
    assert "m0-escape-matrix" not in text
    assert "all-escape-matrix" not in text


def test_figures_stand_under_the_headings_of_their_sections(written):
    text = written[0]
    tab = text[text.index('id="tab-0"') : text.index('id="tab-1"')]
    found = re.findall(r'<h4>(.*?)</h4>|class="plot" id="m0-(.*?)"', tab)
    headings = [heading for heading, _ in found if heading]
    assert len(headings) == len(set(headings)) > 5
    assert headings == list(dict.fromkeys(SECTIONS[e.group] for e in CATALOGUE if SECTIONS[e.group] in headings))
    where, section = {}, ""
    for heading, name in found:
        section = heading or section
        where[name] = section
    assert where["quadratic"] == "Lines through the weights"
    assert where["flatness-against-loss"] == where["flatness"] == "Flatness"
    assert where["escape-matrix"] == "Ways out"


def test_a_page_of_the_main_job_stays_readable():
    groups = {"accuracy", "spectrum", "perturbation", "escape", "flatness", "surface", "surface_line", "surface_eigen"}
    assert sum(entry.on_page and entry.single and entry.group in groups for entry in CATALOGUE) < 30


def tree_of(*groups):
    tree = synthetic.tree("sgd")
    return xr.DataTree.from_dict({group: tree[group].to_dataset() for group in groups})


def test_holes_undecided_lanes_and_stored_warnings_are_reported():
    tree = synthetic.tree("sgd")
    surface = tree["surface"].to_dataset().assign_attrs(warnings='["range was cut"]')
    found = found_warnings(
        {"sgd": xr.DataTree.from_dict({"surface": surface, "spectrum": tree["spectrum"].to_dataset()})}
    )
    text = " ".join(found)
    assert "2 of 234 grid points were not computed" in text
    assert "not finite at 2 grid points" in text
    assert "undecided for deer" in text
    assert "range was cut" in text
