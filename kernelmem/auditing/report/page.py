"""Report of an audit: one static HTML page without scripts that opens offline."""

import math
from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup

from kernelmem.auditing.report import figures, formats, wording
from kernelmem.auditing.report.environment import page_environment
from kernelmem.auditing.report.thumbnails import PREFIX
from kernelmem.auditing.schema import AttackResult, AuditDocument, RowFinding, RowTable
from kernelmem.core.errors import InputError
from kernelmem.statistics import Interval

MAX_LAYERS = 24
N_FEATURES, N_FEATURES_INFLUENTIAL = 8, 3
N_IN_SUMMARY = 4  # sentences of what was not tested, in the summary


def render_page(document: AuditDocument, rows: RowTable) -> str:
    """Render an audit as one HTML page: escaped, static, deterministic; it fetches nothing.

    A document with a failed gate is rendered without any number of its findings.

    Raises:
        InputError: the verdict status is unknown, or an image is not a PNG of this package.
    """
    if document.verdict.status not in wording.STATUS_TITLES:
        raise InputError(
            f"verdict status {document.verdict.status!r}",
            expected=f"one of {', '.join(wording.STATUS_TITLES)}",
            hint="pass one of them",
        )
    for index, image in document.images.items():
        if not image.startswith(PREFIX):  # an img tag may hold nothing but a PNG written by this package
            raise InputError(
                f"images[{index!r}], which is not a PNG data URI", expected=f"text that starts with {PREFIX}",
                hint="use kernelmem.auditing.report.png_data_uri",
            )  # fmt: skip
    claimed = wording.makes_claim(document)
    return page_environment().get_template("page.html.j2").render(
        document=document,
        class_name=_class_names(document),
        status="memorized" if claimed and document.verdict.status == "memorized" else
        ("nothing-found" if claimed else "no-claim"),
        status_titles=wording.STATUS_TITLES,
        claimed=claimed,
        failed=wording.failed_gates(document),
        found=wording.found(document),
        certainty=wording.certainty(document),
        n_in_summary=N_IN_SUMMARY,
        methods=wording.METHODS,
        reasons=wording.REASONS,
        flagged=[row for row in document.rows if row.flagged],
        below=[row for row in document.rows if not row.flagged],
        scores=figures.scores_figure(document, rows) if claimed else Markup(""),
        attacks_figure=figures.attacks_figure(document.leak.attacks) if claimed else Markup(""),
        bits_figure=figures.bits_figure(document.compression) if claimed else Markup(""),
        flip_curves=figures.flip_curves(document),
        attack_table=_attack_table(document.leak.attacks),
        control_sentence=_control_sentence(document),
        plus_minus=formats.format_plus_minus,
        whisker=_whisker_scale([document.how_much.fraction, document.how_much.control]),
        shown=_row_content(document),
        direction=_influence_direction(document),
        most_layers=MAX_LAYERS,
        absent=formats.MISSING,
        pixelated=max(document.data.image_shape or (0,)) < 96,
    )  # fmt: skip


def _class_names(document: AuditDocument) -> Callable[[int | None], str]:
    """Return a function from a class to its name; classes that are left out (None) have a dash."""
    names = document.data.class_names

    def class_name(label: int | None) -> str:
        if label is None:
            return formats.MISSING
        return names[label] if 0 <= label < len(names) else str(label)

    return class_name


def _row_content(document: AuditDocument) -> Callable[[int, bool], Mapping[str, object]]:
    """Return a function ``row_content(index, small)`` that gives the template the content of one training row.

    It returns a dict: "image" is a PNG data URI or None; "features" holds (name, value) of the first features, fewer if
    ``small``; "more" is the number of features that are not shown. All are empty if rows are not shown.
    """
    n_features = math.prod(document.data.input_shape)  # the document may hold fewer features than the row has
    may_show = document.context.rows_shown and not document.context.redacted
    names = document.data.feature_names

    def row_content(index: int, small: bool) -> Mapping[str, object]:
        image = document.images.get(str(index)) if may_show else None
        values = document.features.get(str(index), ()) if may_show and image is None else ()
        shown = values[: N_FEATURES_INFLUENTIAL if small else N_FEATURES]
        features = [(names[k] if k < len(names) else "", value) for k, value in enumerate(shown)]
        return {"image": image, "features": features, "more": max(0, n_features - len(shown)) if shown else 0}

    return row_content


def _influence_direction(document: AuditDocument) -> Callable[[RowFinding, float], str]:
    """Return a function that describes how another row changes the prediction for a row, such as "toward class 3".

    A positive influence acts toward the given label; a negative one toward the class that is predicted without the row, or
    away from the label if this class is the label.
    """
    class_name = _class_names(document)

    def direction(row: RowFinding, influence: float) -> str:
        if row.label is None or row.predicted_without is None:
            return "toward its label" if influence > 0 else "away from its label"
        if influence > 0:
            return f"toward {class_name(row.label)}"
        if row.predicted_without == row.label:
            return f"away from {class_name(row.label)}"
        return f"toward {class_name(row.predicted_without)}"

    return direction


def _attack_table(attacks: Sequence[AttackResult]) -> Mapping[str, object]:
    """Return the columns of the table of attacks, its rows, and its footnotes.

    "rates" and "priors" list the false positive rates and the priors of all attacks. Each of "rows" is (attack, cells of
    true positive rates, cells of predictive values); a cell is (text, letter of its footnote or "").
    """
    rates = sorted({rate.false_positive_rate for attack in attacks for rate in attack.rates}, reverse=True)
    priors = sorted({prior for attack in attacks for prior, _ in attack.predictive_values})
    reasons: list[str] = []
    rows = []
    for attack in attacks:
        by_rate = {rate.false_positive_rate: rate for rate in attack.rates}
        cells = []
        for false_positive_rate in rates:
            rate = by_rate.get(false_positive_rate)
            if rate is None or rate.true_positive_rate is not None:
                cells.append((formats.format_share_interval(rate.true_positive_rate if rate else None), ""))
                continue
            if rate.reason and rate.reason not in reasons:
                reasons.append(rate.reason)
            letter = chr(ord("a") + reasons.index(rate.reason) % 26) if rate.reason else ""
            cells.append(("not measured", letter))
        values = dict(attack.predictive_values)
        rows.append((attack, cells, [(formats.format_share(values.get(prior)), "") for prior in priors]))
    notes = [(chr(ord("a") + k % 26), reason) for k, reason in enumerate(reasons)]
    return {"rates": rates, "priors": priors, "rows": rows, "notes": notes}


def _control_sentence(document: AuditDocument) -> str:
    """Return why the control has fewer rows than the test set, and why attacks use another number; "" if all agree."""
    n_control, n_test = document.how_much.n_control, document.data.n_test
    attacked = {attack.n_nonmembers for attack in document.leak.attacks if attack.n_targets == 1}
    sentences = []
    if document.how_much.method == "kernel" and n_control < n_test:
        sentences.append(
            f"The control has {formats.format_count(n_control)} of {formats.format_count(n_test)} test rows: test rows that are"
            " also training rows, and all but one of each group of near-duplicates, are left out; of a large test set a random"
            " part is used."
        )
    if attacked - {n_control}:
        sentences.append(
            "Attacks are measured on their own number of rows that the network did not see, which their table states."
        )
    return " ".join(sentences)


def _whisker_scale(intervals: Sequence[Interval]) -> Callable[[Interval], Mapping[str, str]]:
    """Return a function from an interval to the positions of its ends and its value, in percent of a common scale with 0."""
    ends = [end for interval in intervals for end in (interval.low, interval.high) if math.isfinite(end)]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    width = 1.08 * (high - low) or 1.0

    def position(value: float) -> str:
        share = (value - low) / width if math.isfinite(value) else 0.0
        return f"{100 * min(max(share, 0.0), 1.0):.2f}%"

    def whisker(interval: Interval) -> Mapping[str, str]:
        return {name: position(getattr(interval, name)) for name in ("low", "high", "value")} | {"zero": position(0.0)}

    return whisker
