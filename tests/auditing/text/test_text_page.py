"""The page of a text audit: it shows the document, runs nothing, and claims nothing where a gate failed."""

import re
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
from markupsafe import Markup

from kernelmem.auditing.schema import Gate
from kernelmem.auditing.text.report import figures, render_text_page
from kernelmem.auditing.text.report.highlight import LEVELS, highlighted
from kernelmem.auditing.text.schema import TextGate
from tests.auditing.report.pages import Page, plain
from tests.auditing.text.sample_text_documents import HOSTILE, SECRET, VARIANTS, build

SECTIONS = ["verdicts", "basis", "gates", "canaries", "extraction", "membership", "change", "documents", "untested", "identity",
            "context", "reproduce"]  # fmt: skip


@cache
def rendered(variant):
    return render_text_page(build(variant))


@pytest.fixture
def undrawn(monkeypatch):
    """Leave the drawings out, which take most of the time."""
    for name in ("exposure_figure", "extraction_figure", "membership_figure"):
        monkeypatch.setattr(figures, name, lambda *_: Markup("<svg></svg>"))


def section(html, name):
    return html.split(f'<section aria-labelledby="{name}">')[1].split("</section>")[0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_well_formed_and_static(variant):
    html = rendered(variant)
    page = Page(html)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(below - above <= 1 for above, below in pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["aria-labelledby"] for a in page.all("section")} <= set(ids)
    assert len(page.all("caption")) == len(page.all("table"))
    assert {tag for tag, _ in page.tags} & {
        "script",
        "iframe",
        "object",
        "embed",
        "link",
        "base",
        "form",
        "img",
    } == set()
    assert not any(name.startswith("on") or name == "title" for _, attributes in page.tags for name in attributes)
    assert "http:" not in html
    assert "https:" not in html
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_the_sections_stand_in_the_order_in_which_they_are_read():
    assert re.findall(r'<section[^>]* aria-labelledby="([^"]+)"', rendered("found")) == SECTIONS


def test_verdicts_have_their_numbers_and_ceilings():
    text = plain(rendered("found"))
    for verdict in build("found").verdicts:
        for part in (verdict.headline, verdict.detail, verdict.ceiling, *verdict.limits):
            assert part in text
    assert text.count("Nothing found") == 0
    assert "ranked after other text 1. Secrets were also asked for at the beginning of a document." in text
    assert plain(rendered("nothing")).count("Nothing found") == 4
    assert plain(rendered("small")).count("Not run") >= 4


def test_texts_are_shown_only_if_they_are_revealed_and_never_run():
    revealed, redacted = rendered("revealed"), rendered("found")
    assert "<script" not in revealed
    assert "\u202e" not in revealed
    text = plain(revealed)
    assert SECRET in text
    assert HOSTILE.replace("\u202e", "\\u202e").replace("\x07", "\\x07") in text
    assert "incident 12" in text
    assert 'class="tokens"' not in redacted
    for line in (SECRET, "for x in range", "alert("):
        assert line not in redacted
    labels = [a.get("aria-label") or "" for _, a in Page(revealed).tags]
    assert not any("alert" in label or SECRET in label for label in labels)


def test_tokens_are_marked_by_the_bits_saved_and_none_is_lost():
    document = build("revealed").documents[0]
    assert document.text
    runs = highlighted(document)
    assert "".join(text for _, text in runs) == "".join(document.text)
    lengths = [sum(bits >= LEVELS[0] for bits in document.saved), sum(bits >= LEVELS[3] for bits in document.saved)]
    assert [sum(len(text) for level, text in runs if level >= k) for k in (1, 4)] == lengths
    assert highlighted(replace(document, text=None)) == []


FAILED = Gate("tightness", "Is it tight?", False, "loose", "tight", "It leaks.")
NUMBERS = {
    "membership": ("0.846", "90.0%", "0.690"),
    "extraction": ("11.4%", "+4.6 points", "Recollected"),
    "canaries": ("1.58", "16 of 16", "19.9"),
    "change": ("−0.420", "−0.790"),
}


@pytest.mark.parametrize("question", NUMBERS)
def test_a_failed_gate_blanks_its_question_and_no_other(question, undrawn):
    document = build("found")
    html = render_text_page(replace(document, gates=(TextGate(FAILED, (question,)), *document.gates)))
    for name, numbers in NUMBERS.items():
        text = plain(section(html, name))
        assert ("Withheld" in text) is (name == question)
        for number in numbers:
            assert (number in text) is (name != question), number
    answers = {a["class"] for a in Page(html).all("article")}
    assert answers == {"answer no-claim", "answer memorized"}
    assert "tightness: loose; required: tight. It leaks." in plain(html)
    blanked = next(verdict for verdict in document.verdicts if verdict.question == question)
    assert blanked.headline not in plain(html)


def test_a_verdict_without_claim_has_no_numbers():
    for name in ("membership", "change", "documents"):
        assert "Withheld" in section(rendered("no-claim"), name)
    assert "Withheld" not in section(rendered("no-claim"), "canaries")


def test_spans_that_are_no_more_than_on_unseen_text_are_no_findings(undrawn):
    html = render_text_page(build("nothing"))
    assert "none is a finding" in plain(section(html, "extraction"))
    assert 'class="faded"' in section(html, "extraction")


def test_equal_documents_give_equal_pages():
    assert render_text_page(build("found")) == rendered("found")
