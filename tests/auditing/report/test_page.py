"""The page shows the content of the document, runs and fetches nothing, claims nothing if a gate failed."""

import math
import re
from dataclasses import fields, is_dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
from markupsafe import Markup

from kernelmem.auditing.report import figures, render_page
from kernelmem.auditing.report.wording import REASONS, STATUS_TITLES
from kernelmem.auditing.schema import AttackRate, Gate
from kernelmem.core.errors import InputError
from kernelmem.statistics import Interval
from tests.auditing.report.pages import Page, plain, rendered
from tests.auditing.sample_documents import HOSTILE, VARIANTS, build

FAILED = Gate("tightness", "Is it tight?", False, "loose", "tight", "It leaks.")


@pytest.fixture
def undrawn(monkeypatch):
    """Leave the drawings out."""
    for name in ("scores_figure", "attacks_figure", "flip_curves"):
        monkeypatch.setattr(figures, name, lambda *_: Markup(""))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_well_formed_and_its_headings_descend_by_one(variant):
    page = Page(rendered(variant))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(below - above <= 1 for above, below in pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["aria-labelledby"] for a in page.all("section")} <= set(ids)
    assert {str(a["href"])[1:] for a in page.all("a")} <= set(ids)
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(a.get("scope") in {"col", "row"} for a in page.all("th"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_runs_nothing_and_fetches_nothing(variant):
    html = rendered(variant)
    page = Page(html)
    assert "http:" not in html
    assert "https:" not in html
    assert "@import" not in html
    assert re.findall(r"url\((?!#)", html) == []
    forbidden = {"script", "iframe", "object", "embed", "link", "base", "form"}
    assert {tag for tag, _ in page.tags} & forbidden == set()
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        assert (attributes.get("href") or "#").startswith("#")
        assert (attributes.get("src") or "data:image/png;base64,").startswith("data:image/png;base64,")
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    used = set(re.findall(r"url\(#([^)]+)\)", html)) | {str(a["href"])[1:] for a in page.all("use")}
    assert used <= ids


def test_same_document_same_bytes():
    assert render_page(*build("retraining")) == rendered("retraining")


def test_hostile_names_are_text():
    assert "<script" not in rendered("hostile")
    text = plain(rendered("hostile"))
    assert HOSTILE in text
    document, rows = build("hostile")
    text = plain(render_page(replace(document, gates=()), rows))  # with all findings
    assert '" onload="' in text


def test_the_sections_stand_in_the_order_in_which_they_are_read():
    headings = re.findall(r'<section[^>]* aria-labelledby="([^"]+)"', rendered("retraining"))
    assert headings == [
        "verdict", "brief", "gates", "how-much", "bits", "rows", "leak", "labels", "slices", "power", "annex", "scores",
        "untested", "identity", "context", "reproduce",
    ]  # fmt: skip


def test_interval_and_control_stand_beside_the_headline():
    html = rendered("kernel")
    first = plain(html[html.index("<section") : html.index("</section>")])
    for text in ("17.2%", "14.2% to 20.4%", "0.3%", "0.01% to 1.4%"):
        assert text in first


def test_cards_say_whether_a_row_is_flagged_and_under_which_heading():
    text = plain(rendered("retraining"))
    flagged, below = text.split("Flagged as memorized")[1].split("Not flagged, but ranking high")
    assert "12 of 103; all rows are in rows.csv" in flagged
    assert flagged.count("flagged as memorized") == 12
    assert "below the threshold" not in flagged
    assert below.split("Can it leak?")[0].count("below the threshold") == 4 + 1
    assert "flagged as memorized" not in below.split("Can it leak?")[0]
    assert text.count("Measured effect") == text.count("Predicted effect") == 16
    assert "Measured effect" not in plain(rendered("kernel"))
    for row in build("retraining")[0].rows:
        assert REASONS[row.reason][1:] in text


FINDINGS = ("flagged as memorized", "suspicious first", "false alarms", "Spearman")


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_failed_gate_blanks_every_finding_whatever_the_verdict_says(variant, undrawn):
    """The page of a document with a failed gate is the same, byte by byte, as with other findings."""
    document, rows = build(variant)
    document = replace(document, gates=(FAILED, *document.gates))
    html = render_page(document, rows)
    page = Page(html)
    assert page.all("section")[0]["class"] == "verdict no-claim"
    assert "tightness : loose; required: tight" in plain(html)
    assert page.all("img") == page.all("article") == []
    assert [words for words in FINDINGS if words in plain(html)] == []
    none, _ = build("bare")
    status = document.verdict.status
    assert html == render_page(
        replace(
            document,
            verdict=document.verdict
            if status == "no-claim"
            else replace(document.verdict, status="nothing-found", headline="another", detail="another"),
            how_much=none.how_much,
            rows=none.rows,
            images=none.images,
            features={},
            leak=none.leak,
            suspected=none.suspected,
            power=replace(document.power, smallest_count=None, meaning="another", budget="another"),
            agreements=(),
            slices=tuple(
                replace(row, n_flagged=-7, fraction=None, adjusted_p=None, n_contradicted=-7) for row in document.slices
            ),
            annex=tuple(replace(line, result="another", status="supported") for line in document.annex),
        ),
        build("kernel")[1],
    )


def test_findings_are_shown_without_a_failed_gate():
    text = plain(rendered("retraining"))
    for words in FINDINGS:
        assert words in text


def test_without_findings_nothing_is_announced():
    text = plain(rendered("nothing"))
    assert "Nothing found" in text
    assert "chance alone can explain" in text
    assert "No row is flagged" in text
    assert text.count("below the threshold") == 4 + 1
    document, rows = build("kernel")
    document = replace(document, verdict=replace(document.verdict, status="nothing-found"))
    text = plain(render_page(document, rows))
    assert "Flagged, but no more rows than by chance" in text
    assert text.count("flagged, within chance") == 12
    assert "flagged as memorized" not in text


def test_rows_are_shown_only_if_the_document_says_so(undrawn):
    document, rows = build("retraining")
    assert Page(rendered("retraining")).all("img")
    for context in (
        replace(document.context, rows_shown=False),
        replace(document.context, redacted=True),
    ):
        html = render_page(replace(document, context=context), rows)
        assert Page(html).all("img") == []
        assert "base64" not in html
    document, rows = build("features")
    values = [f"{value:.3g}"[:4] for row in document.features.values() for value in row]
    hidden = render_page(replace(document, context=replace(document.context, rows_shown=False)), rows)
    assert "features" not in hidden.split("</style>")[1].replace("input features", "")
    shown = plain(render_page(document, rows))
    assert sum(value in shown for value in values) > 100
    assert "income" in shown


def test_a_redacted_page_names_no_class_of_a_row():
    html = rendered("redacted")
    cards = plain(html[html.index('id="rows"') - 20 : html.index('<section aria-labelledby="leak"')])
    assert "Labeled" not in cards
    assert cards.count("Class left out") == 16
    assert "their labels" in cards


def test_every_index_displayed_has_its_image():
    document, _ = build("retraining")
    for image in Page(rendered("retraining")).all("img"):
        index = re.match(r"Training row (\d+), labeled", str(image["alt"]))
        assert index
        assert image["src"] == document.images[index[1]]


def test_an_image_that_is_none_is_refused():
    document, rows = build("retraining")
    with pytest.raises(InputError, match="PNG"):
        render_page(replace(document, images=dict.fromkeys(document.images, "javascript:alert(1)")), rows)


def test_an_unknown_status_is_refused():
    document, rows = build("retraining")
    with pytest.raises(InputError, match="status"):
        render_page(replace(document, verdict=replace(document.verdict, status="fine")), rows)  # pyright: ignore


def test_a_rate_that_cannot_be_measured_has_its_reason(undrawn):
    document, rows = build("retraining")
    attacks = tuple(
        replace(attack, rates=(AttackRate(0.01, None, f"reason {k % 2}"),))
        for k, attack in enumerate(document.leak.attacks)
    )
    text = plain(render_page(replace(document, leak=replace(document.leak, attacks=attacks)), rows))
    assert text.count("not measured: reason") == 2


def test_the_count_of_control_rows_is_explained_where_it_differs(undrawn):
    document, rows = build("kernel")
    assert "The control has" not in plain(rendered("kernel"))
    fewer = replace(document, how_much=replace(document.how_much, n_control=391))
    text = plain(render_page(fewer, rows))
    assert "The control has 391 of 400 test rows" in text
    assert "their own number of rows" in text


LEFT_OUT = {
    "context.rows_shown",  # decides whether rows are shown, and is said with redaction
    "leak.attacks[0].rates[0].reason",  # of a rate that was measured
}


def leaves(value: Any, path: str):
    """Yield (path, value) of all leaves of nested dataclasses, tuples and dicts; of a sequence only the first entry."""
    if isinstance(value, Interval):
        yield from ((f"{path}.{end}", getattr(value, end)) for end in ("value", "low", "high"))
    elif is_dataclass(value):
        for field in fields(value):
            yield from leaves(getattr(value, field.name), f"{path}.{field.name}".removeprefix("."))
    elif isinstance(value, tuple) and value:
        yield from leaves(value[0], f"{path}[0]")
    elif isinstance(value, dict):
        yield from ((f"{path}[{key}]", entry) for key, entry in list(value.items())[:1])
    else:
        yield path, value


def changed(value: Any, path: str, new: Any) -> Any:
    """Return the nested value with another leaf at ``path``."""
    match = re.match(r"\.?(\w+)|\[([^\]]+)\]", path)
    assert match
    rest = path[match.end() :]
    if match[1]:
        return replace(value, **{match[1]: changed(getattr(value, match[1]), rest, new) if rest else new})
    if isinstance(value, dict):
        return {**value, match[2]: new}
    return (changed(value[0], rest, new) if rest else new, *value[1:])


def other(value: Any) -> Any:
    """Return another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        if value in STATUS_TITLES:
            return next(status for status in STATUS_TITLES if status != value)
        choices = {"retraining": "kernel", "class": "group", "not run": "supported", "model": "algorithm"} | {
            reason: next(r for r in REASONS if r != reason) for reason in REASONS
        }
        return value.replace("AAAA", "AAAB") if value.startswith("data:") else choices.get(value, "another text")
    return 7 if isinstance(value, int) else 0.1234 if value is None else value * 0.77 + 0.01


def test_every_field_of_the_document_is_on_the_page_or_left_out_on_purpose(monkeypatch):
    """Change one field after the other: the page must change. The drawings, which are slow, do not count."""
    for name in ("scores_figure", "attacks_figure"):
        monkeypatch.setattr(figures, name, lambda *_: Markup(""))
    monkeypatch.setattr(figures, "flip_curves", lambda document: Markup(f"<b>{document.flips!r}</b>"))
    monkeypatch.setattr(figures, "bits_figure", lambda compression: Markup(f"<b>{compression!r}</b>"))
    document, rows = build("retraining")
    document = replace(document, features={})
    reference = render_page(document, rows)
    unseen = []
    for path, value in leaves(document, ""):
        if value == () or value == {} or (isinstance(value, str) and path.endswith(".predicted_without")):
            continue
        if render_page(changed(document, path, other(value)), rows) == reference:
            unseen.append(path)
    assert set(unseen) <= LEFT_OUT


def test_bits_of_the_labels_have_their_control_or_the_reason_why_there_are_none():
    shown = plain(rendered("kernel"))
    assert "The network holds 570 more (null −1)" in shown
    for text in (
        "follow from the other rows: 1,419",
        "memorized: 570",
        "of them label noise, about 473",
        "in neither: 4",
    ):
        assert text in shown
    assert "known to a decoder without the network: 1,122" in shown
    assert "untrained network" in shown
    nothing = plain(rendered("nothing"))
    assert "memorized: −1" in nothing
    assert "label noise, about" not in nothing  # more than the memorized bits
    assert "known to a decoder" not in nothing
    for variant, words in (("features", "Not estimable: the reference"), ("bare", "Not run: Got 90,000 rows")):
        section = plain(re.findall(r'aria-labelledby="bits">.*?</section>', rendered(variant), re.DOTALL)[0])
        assert words in section
        assert "follow" not in section
    assert "570" not in plain(rendered("no-claim"))


def test_drawings_take_their_colors_from_the_page():
    document, rows = build("kernel")
    drawings = {
        "train": figures.scores_figure(document, rows),
        "memorized": figures.attacks_figure(document.leak.attacks),
        "recall": figures.flip_curves(document),
        "null": figures.bits_figure(document.compression),
    }
    for role, svg in drawings.items():
        assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) <= {"#000000"}
        assert f"var(--figure-{role})" in svg
        assert svg.count("<svg") == 2
        assert svg.count('role="img" aria-label="') == 2
        assert min(float(size) for size in re.findall(r"font-size: ([0-9.]+)px", svg)) >= 9.5


def test_numbers_that_are_missing_or_not_finite_leave_no_nan(undrawn):
    document, rows = build("retraining")
    nan = Interval(math.nan, math.nan, math.nan, 0.95)
    first = replace(document.rows[0], score=math.nan, verified_effect=nan)
    broken = replace(document, how_much=replace(document.how_much, fraction=nan, mean=nan), rows=(first,))
    assert "nan" not in plain(render_page(broken, rows)).lower().split()
