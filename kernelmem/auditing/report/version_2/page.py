"""Report of an audit: one static HTML page without scripts that opens offline."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from kernelmem.auditing.document import AuditDocument, Example
from kernelmem.auditing.report.thumbnails import PREFIX
from kernelmem.auditing.report.version_2 import figures
from kernelmem.core.errors import InputError, printable

MINUS = "\N{MINUS SIGN}"
MISSING = "\N{EN DASH}"
STATUS_TITLES = {"memorized": "Memorization found", "nothing-found": "Nothing found", "no-claim": "No claim"}
MAX_LAYERS = 24
N_FEATURES, N_FEATURES_INFLUENTIAL = 8, 3


@dataclass(frozen=True)
class Tile:
    """A key number at the top of the report: name, value, and a note that puts the value into context."""

    name: str
    value: str
    note: str
    error: str = ""
    tone: str = ""


def render(document: AuditDocument) -> str:
    """Render an audit as one HTML page: escaped, static, deterministic; it fetches nothing.

    Raises:
        InputError: the verdict status is unknown, or an example has no image or features.
    """
    if document.verdict.status not in STATUS_TITLES:
        raise InputError(
            f"verdict status {document.verdict.status!r}",
            expected=f"one of {', '.join(STATUS_TITLES)}",
            hint="pass one of them",
        )
    _check_images_and_features(document)
    names = {row.label: row.name for row in document.classes}

    def class_name(label: int) -> str:
        return names.get(label, str(label))

    environment = Environment(
        loader=PackageLoader("kernelmem.auditing.report.version_2", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,  # not the drawings, which are Markup
    )
    environment.filters.update(
        count=format_count,
        number=format_number,
        signed=format_signed,
        share=format_share,
        p_value=format_p_value,
        class_name=class_name,
    )
    return environment.get_template("report.html.j2").render(
        document=document,
        status=STATUS_TITLES[document.verdict.status],
        claimed=document.verdict.status != "no-claim",
        found=document.verdict.status == "memorized",
        tiles=_tiles(document),
        distribution=figures.distribution(document),
        two_statistics=figures.two_statistics(document),
        flip_curves=figures.flip_curves(document),
        plus_minus=format_plus_minus,
        shown=_row_content(document),
        direction=_influence_direction,
        name=class_name,
        most_layers=MAX_LAYERS,
        absent=MISSING,
        pixelated=max(document.data.image_shape or (0,)) < 96,
    )


def _check_images_and_features(document: AuditDocument) -> None:
    """Raise an InputError if a training row that the report shows has no image or no features in the document."""
    for index in _shown_indices(document.examples):
        if document.data.image_shape is None:
            valid = str(index) in document.features
        else:  # an img tag may hold nothing but a PNG written by this package
            valid = document.images.get(str(index), "").startswith(PREFIX)
        if not valid:
            kind = "features" if document.data.image_shape is None else "images"
            raise InputError(
                f"an example with training row {index}, which has no entry in document.{kind}",
                expected="an entry for every row shown",
                hint=f"add document.{kind}[{str(index)!r}]",
            )


def _shown_indices(examples: tuple[Example, ...]) -> list[int]:
    """Return the sorted indices of all training rows in the report: the examples and the rows that influence them."""
    return sorted(
        {example.index for example in examples} | {row.index for example in examples for row in example.influential}
    )


def _row_content(document: AuditDocument) -> Callable[[int, bool], Mapping[str, object]]:
    """Return a function ``row_content(index, small)`` that gives the template the content of one training row.

    It returns a dict: "image" is a PNG data URI or None, "features" holds the first features (fewer if ``small``), and
    "more" is the number of features that are not shown.
    """
    n_features = math.prod(document.data.input_shape)  # the document may hold fewer features than the row has

    def row_content(index: int, small: bool) -> Mapping[str, object]:
        if document.data.image_shape is not None:
            return {"image": document.images[str(index)], "features": (), "more": 0}
        features = document.features[str(index)]
        n_shown = N_FEATURES_INFLUENTIAL if small else N_FEATURES
        return {"image": None, "features": features[:n_shown], "more": max(0, n_features - n_shown)}

    return row_content


def _influence_direction(example: Example, influence: float, name: Callable[[int], str]) -> str:
    """Return a phrase such as "toward class 3": how another row changes the prediction for this example.

    A positive ``influence`` acts toward the given label. A negative one acts toward the leave-one-out prediction, or
    away from the label if this prediction is the label. ``name`` maps a class to its text.
    """
    if influence > 0:
        return f"toward {name(example.label)}"
    if example.loo_prediction == example.label:
        return f"away from {name(example.label)}"
    return f"toward {name(example.loo_prediction)}"


def _tiles(document: AuditDocument) -> list[Tile]:
    """Return the key numbers at the top of the report: accuracies, memorized rows, fidelity and AUROC.

    The number of memorized rows is withheld if the verdict makes no claim, and AUROC is omitted if flips are unknown.
    """
    data, model, fidelity = document.data, document.model, document.fidelity
    memorization, flips = document.memorization, document.flips
    claimed = document.verdict.status != "no-claim"
    tiles = [
        Tile(
            "Test accuracy",
            format_share(model.test_accuracy),
            f"of {format_count(data.n_test)} rows, {data.n_classes} classes",
        ),
        Tile(
            "Train accuracy",
            format_share(model.train_accuracy),
            f"of {format_count(data.n_train)} rows, labels as given",
        ),
    ]
    if claimed:
        n_chance, p = format_number(memorization.expected_by_chance, 2), format_p_value(memorization.p_value)
        value = f"{format_count(len(memorization.memorized))} of {format_count(data.n_train)}"
        tiles.append(
            Tile("Memorized rows", value, f"{n_chance} expected by chance, p {p}", tone=document.verdict.status)
        )
    else:
        note = "withheld: the NTK surrogate does not approximate the network"
        tiles.append(Tile("Memorized rows", MISSING, note, tone="no-claim"))
    value, error = format_plus_minus(fidelity.agreement, fidelity.agreement_se, percent=True).split(" ± ")
    note = f"of test rows: same class by surrogate and network; {format_number(100 * fidelity.agreement_required)}% required"
    tiles.append(Tile("Fidelity", value, note, error, "" if claimed else "no-claim"))
    if flips.auroc is not None:
        value, error = format_plus_minus(flips.auroc, flips.auroc_se or 0.0).split(" ± ")
        note = f"of {format_count(flips.n or 0)} known flips, by leave-one-out margin"
        tiles.append(Tile("AUROC", value, note, error if flips.auroc_se is not None else ""))
    return tiles


def format_count(value: int) -> str:
    """Format a whole number with thousands separators.

    Example:
        >>> format_count(12345)
        '12,345'
    """
    return f"{value:,}".replace("-", MINUS)


def format_number(value: float | None, digits: int = 3) -> str:
    """Format a number with ``digits`` significant digits.

    Example:
        >>> [format_number(v) for v in (0.0, 12.0, -0.12345, 1234.5, 0.00001234, None)]
        ['0', '12', '−0.123', '1,234', '1.23 × 10⁻⁵', '–']
    """
    if value is None or not math.isfinite(value):
        return MISSING
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}".replace("-", MINUS)
    exponent = int(f"{value:.{digits - 1}e}".split("e")[1])  # after rounding: 9.996 has exponent 1
    if not -4 < exponent < 7:
        superscript = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return f"{value / 10.0**exponent:.{digits - 1}f} × 10{superscript}".replace("-", MINUS)
    return f"{value:,.{max(0, digits - 1 - exponent)}f}".replace("-", MINUS)


def format_signed(value: float) -> str:
    """Format a number with its sign.

    Example:
        >>> format_signed(0.5), format_signed(-0.5)
        ('+0.500', '−0.500')
    """
    return ("+" if value > 0 else "") + format_number(value)


def format_share(value: float | None) -> str:
    """Format a share as a percentage; 100% and 0% appear only if exact.

    Example:
        >>> [format_share(v) for v in (1.0, 0.99996, 0.9125, 0.0, None)]
        ['100%', '99.996%', '91.3%', '0%', '–']
    """
    if value is None:
        return MISSING
    if value in (0, 1):
        return f"{value:.0%}"
    digits = next((d for d in range(1, 6) if 0 < round(100 * value, d) < 100), 6)
    return f"{math.floor(100 * value * 10**digits + 0.5) / 10**digits:.{digits}f}%"


def format_plus_minus(value: float, error: float, *, percent: bool = False) -> str:
    """Format a value with its standard error, to the digits that the error leaves.

    Example:
        >>> format_plus_minus(0.9983, 0.0011), format_plus_minus(0.965, 0.009, percent=True), format_plus_minus(-3.0, 0.0)
        ('0.9983 ± 0.0011', '96.5% ± 0.9%', '−3 ± 0')
    """
    scale, unit = (100, "%") if percent else (1, "")
    value, error = scale * value, scale * error
    if not error > 0:
        return f"{format_number(value)}{unit} ± {format_number(error)}{unit}"
    # One digit of the error, two where it starts with 1 or 2; one decimal of a percentage
    exponent = math.floor(math.log10(error))
    decimals = min(6, max(0, (error < 3 * 10.0**exponent) - exponent))
    if percent and error >= 0.1:
        decimals = 1
    return f"{value:,.{decimals}f}{unit} ± {error:.{decimals}f}{unit}".replace("-", MINUS)


def format_p_value(value: float) -> str:
    """Format a p-value with its relation, cut at 0.001.

    Example:
        >>> format_p_value(1e-12), format_p_value(0.0312), format_p_value(0.41), format_p_value(1.0)
        ('< 0.001', '= 0.031', '= 0.41', '= 1')
    """
    return "< 0.001" if value < 0.001 else f"= {format_number(value, 2)}"
