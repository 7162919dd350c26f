"""The report shows the content of the document, runs nothing, fetches nothing, and fits a phone."""

import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from kernelmem.auditing.report import distribution_figure, render
from kernelmem.auditing.report.version_2 import figures
from kernelmem.auditing.result import Audit
from kernelmem.core.errors import InputError
from kernelmem.plotting.style import style
from tests.profiles import examples

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VOID = {"meta", "img", "link", "br", "hr"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails on tags that do not close in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs), (tag, attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.open, self.getpos())

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += " ".join(data.split()) + " "

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def html(variant, report) -> str:
    return report(variant)


@pytest.fixture
def page(html) -> Page:
    return Page(html)


def test_every_variant_is_well_formed_and_its_headings_descend_by_one(page):
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(below - above <= 1 for above, below in pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["aria-labelledby"] for a in page.all("section")} <= set(ids)
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(a.get("scope") in {"col", "row"} for a in page.all("th"))


def test_every_variant_runs_nothing_and_fetches_nothing(html, page):
    assert "http:" not in html
    assert "https:" not in html
    assert "@import" not in html
    assert re.findall(r"url\((?!#)", html) == []
    assert {tag for tag, _ in page.tags} & {
        "script",
        "iframe",
        "object",
        "embed",
        "link",
        "base",
        "form",
    } == set()
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        assert (attributes.get("href") or "#").startswith("#")
        assert (attributes.get("src") or "data:image/png;base64,").startswith("data:image/png;base64,")
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_references_inside_drawings_lead_to_ids_of_the_same_page(html, page):
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    used = set(re.findall(r"url\(#([^)]+)\)", html)) | {str(a["href"])[1:] for a in page.all("use")}
    assert used
    assert used <= ids


def test_hostile_names_are_text(report):
    html = report("hostile")
    assert "<script" not in html
    assert '<script>alert("1")</script>' in Page(html).text
    assert '" onload="' in Page(html).text


def test_same_document_same_bytes(make_document, report):
    assert render(make_document("flips")) == report("flips")


def test_verdict_limits_hashes_and_counts_stand_on_the_page(document, page):
    shown = [
        document.verdict.headline,
        document.verdict.detail,
        *document.verdict.limits,
        document.data.sha256,
        document.model.sha256,
        document.model.training,
        document.reproduce,
        f"{document.data.n_train:,} training rows",
        *document.versions,
    ]
    assert [text for text in shown if " ".join(text.split()) not in page.text] == []
    assert sum("tile" in (a.get("class") or "").split() for a in page.all("div")) == (
        4 if document.flips.n is None else 5
    )
    assert page.all("section")[0]["class"] == f"verdict {document.verdict.status}"


def test_every_index_displayed_has_its_image_or_features(document, page):
    expected = [e.index for e in document.examples] + [p.index for e in document.examples for p in e.influential]
    if document.data.image_shape is None:
        shown = [a["aria-label"] for a in page.all("ul") if a.get("class") == "features"]
        assert page.all("img") == []
    else:
        shown = [a["alt"] for a in page.all("img")]
        for image in page.all("img"):
            index = re.match(r"Training row (\d+), labeled", str(image["alt"]))
            assert index
            assert image["src"] == document.images[index[1]]
    indices = [int(re.match(r"Training row (\d+)", str(label))[1]) for label in shown]
    assert sorted(indices) == sorted(expected)


def test_without_fidelity_the_headline_is_blanked_and_no_row_is_called_memorized(make_document, report):
    document = make_document("no-claim")
    page = Page(report("no-claim"))
    count = f"{len(document.memorization.memorized)} of {document.data.n_train}"
    assert count not in page.text
    assert "support no claim" in page.text
    assert "Most memorized rows" not in page.text
    assert count in Page(report("flips")).text


def test_both_regressions_are_described(page):
    assert "NTK surrogate approximates this network" in page.text
    assert "Label regression any learner with this kernel" in page.text


def test_flips_are_shown_where_they_are_known_and_nowhere_else(report):
    known, unknown = Page(report("flips")).text, Page(report("nothing")).text
    for words in ("AUROC", "0.9983 ± 0.0011", "permuted flags", "label flipped", "recall"):
        assert words in known
        assert words not in unknown


def test_all_classes_are_listed(make_document, report):
    document = make_document("many-classes")
    assert report("many-classes").count('<th scope="row">') == len(document.classes) + 4


def test_an_example_without_its_image_is_refused(make_document):
    document = make_document("flips")
    index = document.examples[0].influential[0].index
    without = {key: uri for key, uri in document.images.items() if key != str(index)}
    with pytest.raises(InputError, match=f"row {index}"):
        render(replace(document, images=without))
    with pytest.raises(InputError):
        render(replace(document, images=dict.fromkeys(document.images, "javascript:alert(1)")))
    with pytest.raises(InputError):
        render(replace(make_document("rows"), features={}))


def test_an_unknown_status_is_refused(make_document):
    document = make_document("flips")
    with pytest.raises(InputError, match="status"):
        render(replace(document, verdict=replace(document.verdict, status="fine")))


def test_drawings_take_their_colors_from_the_page(make_document):
    document = make_document("flips")
    for draw in (figures.distribution, figures.two_statistics, figures.flip_curves):
        svg = draw(document)
        assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) <= {"#000000"}
        assert "var(--figure-train)" in svg
        assert svg.count("<svg") == 2
        assert svg.count('role="img" aria-label="') == 2
        assert min(float(size) for size in re.findall(r"font-size: ([0-9.]+)px", svg)) >= 9.5


def test_bars_hold_all_rows_and_none_straddles_the_threshold(make_document):
    memory = make_document("flips").memorization
    network, null = np.asarray(memory.network_memorization), np.asarray(memory.null)
    edges = figures._bin_edges(network, null, memory.threshold, 40)
    assert edges[0] <= min(network.min(), null.min())
    assert edges[-1] >= max(network.max(), null.max())
    assert np.isclose(edges, memory.threshold).sum() == 1


@pytest.mark.parametrize("constant", [0.0, -3.0, 1e9])
def test_constant_statistics_are_drawn(make_document, constant):
    document = make_document("bare")
    n = len(document.memorization.network_memorization)
    memory = replace(
        document.memorization,
        network_memorization=(constant,) * n,
        label_memorization=(constant,) * n,
        null=(constant,) * 3,
        threshold=constant,
        memorized=(),
    )
    page = Page(render(replace(document, memorization=memory)))
    plain = Page(render(document))
    assert [tag for tag, _ in page.tags].count("svg") == [tag for tag, _ in plain.tags].count("svg") > 0
    assert "nan" not in page.text.lower().split()


def test_opacities_are_opacities_whatever_the_largest_number_of_equal_rows():
    for largest in (*range(2, 3000), 10**6):
        opacities = figures._opacities(np.array([1.0, (largest + 1) // 2, largest]))
        assert 0.25 <= opacities.min() <= opacities.max() == 1, largest


@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=12),
    st.lists(st.integers(-3, 3), min_size=1, max_size=4),
    st.integers(1, 60),
    st.sampled_from([1e-300, 1e-9, 1.0, 1e9, 1e250]),
    st.sampled_from([0.0, 1.0, -1e6]),
    st.integers(-3, 3),
    st.sampled_from(["memorized", "nothing-found", "no-claim"]),
)
@examples(0.25)
def test_any_statistics_are_drawn(make_document, values, null, repeats, scale, shift, threshold, status):
    """Ties, constants, single rows, tiny and huge values: a drawing never fails after all the computing."""
    document = make_document("bare")
    network = np.repeat(np.array(values), repeats) * scale + shift
    statistics = replace(
        document.memorization,
        network_memorization=tuple(network.tolist()),
        label_memorization=tuple((network[::-1] / 3).tolist()),
        null=tuple((np.array(null) * scale + shift).tolist()),
        threshold=threshold * scale + shift,
        memorized=tuple(np.flatnonzero(network > threshold * scale + shift).tolist()),
    )
    verdict = replace(document.verdict, status=status)
    document = replace(document, memorization=statistics, verdict=verdict)
    for narrow in (False, True):
        with style(figures.PARAMETERS):
            figure = Figure(figsize=figures.NARROW if narrow else figures.WIDE, layout="constrained")
            above, below = figure.subplots(2)
            figures._draw_distribution(above, document, narrow)
            figures._draw_two_statistics(below, document, narrow)
            figure.draw_without_rendering()


def test_plot_is_a_figure_for_notebooks(make_document, tmp_path):
    figure = distribution_figure(make_document("flips"))
    figure.savefig(tmp_path / "figure.png", dpi=50)
    with Image.open(tmp_path / "figure.png") as image:
        assert np.asarray(image).std() > 5


def chromium(directory: Path, *arguments: str) -> str:
    quiet = "headless=new no-sandbox disable-gpu no-first-run hide-scrollbars disable-background-networking"
    options = [f"--{name}" for name in (*quiet.split(), "disable-component-update", "disable-sync")]
    command = [str(CHROMIUM), *options, f"--user-data-dir={directory / 'profile'}", *arguments]
    return subprocess.run(command, check=True, capture_output=True, timeout=60, text=True).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("variant", ["flips", "hostile"])
def test_a_browser_fits_it_into_a_phone_without_sideways_scrolling(report, tmp_path, variant):
    """Browser windows have a minimum width, so the page is loaded in a narrow frame and measured by a script."""
    (tmp_path / "audit.html").write_text(report(variant), encoding="utf-8")
    wrapper = tmp_path / "phone.html"
    wrapper.write_text(
        """<!doctype html><iframe src="audit.html" style="width:390px;height:844px;border:0"></iframe><script>
        onload = () => { const page = document.querySelector("iframe").contentDocument.documentElement;
          document.title = [page.scrollWidth, page.clientWidth, page.scrollHeight].join(" ") }</script>""",
        encoding="utf-8",
    )
    dump = chromium(tmp_path, "--allow-file-access-from-files", "--dump-dom", wrapper.as_uri())
    found = re.search(r"<title>(\d+) (\d+) (\d+)</title>", dump)
    assert found
    width, room, height = (int(value) for value in found.groups())
    assert room == 390
    assert width == room
    assert height > 3000


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_shows_it_light_and_dark(report, tmp_path):
    page = tmp_path / "audit.html"
    page.write_text(report("flips"), encoding="utf-8")
    screenshots = []
    for flags in ((), ("--blink-settings=preferredColorScheme=0",)):
        target = tmp_path / f"{len(screenshots)}.png"
        chromium(tmp_path, "--window-size=1000,1400", f"--screenshot={target}", *flags, page.as_uri())
        with Image.open(target) as image:
            screenshots.append(np.asarray(image.convert("L")).astype(float))
    light, dark = screenshots
    assert light.shape == dark.shape == (1400, 1000)
    assert np.median(light) > 230
    assert np.median(dark) < 60
    assert light.std() > 10
    assert dark.std() > 10


def test_names_cannot_reorder_the_page_or_the_terminal(make_document):
    bidi = "\N{RIGHT-TO-LEFT OVERRIDE}exe.gnp\x1b[2J"
    document = make_document("bare")
    document = replace(
        document,
        data=replace(document.data, name=bidi),
        model=replace(document.model, name=bidi, layers=(bidi,), training=bidi),
        verdict=replace(document.verdict, headline=bidi, detail=bidi, limits=(bidi,)),
        reproduce=bidi,
        versions={bidi: bidi},
    )
    for text in (render(document), str(Audit(document))):
        assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in text
        assert "\x1b" not in text
        assert "\\u202eexe.gnp" in text
