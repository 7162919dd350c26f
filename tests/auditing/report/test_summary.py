"""The summary for terminals: one screen, the statements of the page, no finding if a gate failed."""

from dataclasses import replace

import pytest

from kernelmem.auditing.report import plot_scores, summary
from kernelmem.auditing.report.wording import leak_sentence
from kernelmem.auditing.result import Audit
from kernelmem.auditing.schema import Gate
from kernelmem.statistics import Interval
from tests.auditing.sample_documents import VARIANTS, build

FAILED = Gate("tightness", "Is it tight?", False, "loose", "tight", "It leaks.")


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_summary_fits_one_screen(variant):
    lines = summary(build(variant)[0]).splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 120 or variant == "hostile"


def test_it_has_headline_interval_control_leak_and_the_state_of_each_row():
    document = build("retraining")[0]
    text = " ".join(summary(document).split())
    for part in (
        document.verdict.headline,
        "17.2% (14.2% to 20.4%)",
        "0.3% (0.01% to 1.4%) of 400 rows",
        "AUC 0.722 (0.695 to 0.748)",
        "not run: shadow fidelity",
        document.power.meaning,
        "0.9983 (0.9961 to 0.9993)",
    ):
        assert part in text
    first, *_, last = (line for line in summary(document).splitlines() if line.startswith("    flagged  "))
    assert f"{document.rows[0].index}  {document.data.class_names[document.rows[0].label or 0]}" in first
    assert "±" in last
    below = replace(document, rows=document.rows[-1:])
    assert "    below the threshold  " in summary(below)


@pytest.mark.parametrize("variant", VARIANTS)
def test_with_a_failed_gate_the_summary_does_not_depend_on_the_findings(variant):
    document, other = build(variant)[0], build("bare")[0]
    document = replace(document, gates=(FAILED, *document.gates))
    text = summary(document)
    assert "No claim" in text
    assert "tightness: loose; required: tight" in text
    changed = {name: getattr(other, name) for name in ("how_much", "rows", "leak", "suspected", "power", "agreements")}
    assert text == summary(replace(document, **changed))
    if document.verdict.status != "no-claim":
        assert document.verdict.headline not in text or variant == "hostile"


def test_labels_that_are_left_out_are_left_out():
    document = build("redacted")[0]
    for name in document.data.class_names:
        assert f" {name} " not in summary(document).split("rows that rank first")[1]


def test_an_attack_succeeds_if_its_interval_lies_above_that_of_the_null():
    document = build("kernel")[0]
    attack = document.leak.attacks[0]

    def sentence(low: float, null_high: float) -> str:
        changed = replace(attack, auc=Interval(0.6, low, 0.7, 0.95), null_auc=Interval(0.5, 0.4, null_high, 0.95))
        return leak_sentence(replace(document, leak=replace(document.leak, attacks=(changed, changed))))

    assert "2 of 2 attacks succeeded" in sentence(0.56, 0.55)
    assert "It is open" in sentence(0.54, 0.55)
    assert "None of the 2 attacks" in sentence(0.49, 0.45)
    assert "not tested" in leak_sentence(build("bare")[0])


def test_texts_cannot_reorder_the_terminal():
    bidi = "\N{RIGHT-TO-LEFT OVERRIDE}exe.gnp\x1b[2J"
    document = build("kernel")[0]
    document = replace(
        document,
        data=replace(document.data, class_names=(bidi,) * 10),
        verdict=replace(document.verdict, headline=bidi, detail=bidi),
        gates=(replace(document.gates[0], name=bidi, passed=None),),
        power=replace(document.power, meaning=bidi),
    )
    text = summary(document)
    assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in text
    assert "\x1b" not in text


@pytest.mark.parametrize("variant", ["kernel", "retraining", "nothing", "no-claim"])
def test_plot_highlights_flagged_rows_unless_there_is_no_claim(variant):
    figure = plot_scores(*build(variant))
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert "600 training rows" in texts
    assert ("103 flagged rows" in texts) == (variant in ("kernel", "retraining"))
    colors = {patch.get_facecolor() for patch in figure.axes[0].patches}
    assert len(colors) == {"kernel": 3, "retraining": 2, "nothing": 2 + 1, "no-claim": 2}[variant]


def test_notebooks_show_the_summary_as_text():
    document, rows = build("hostile")
    html = Audit(document, rows)._repr_html_()
    assert "<script" not in html
    assert "&lt;script&gt;" in html
