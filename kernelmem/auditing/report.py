"""Report of an audit: one static HTML page without scripts that opens offline."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from kernelmem.auditing import figures
from kernelmem.auditing.document import AuditDocument, Example
from kernelmem.auditing.thumbnails import PREFIX
from kernelmem.core.errors import InputError

MINUS = "\N{MINUS SIGN}"
ABSENT = "\N{EN DASH}"
STATUS = {"memorized": "Memorization found", "nothing-found": "Nothing found", "no-claim": "No claim"}
MOST_LAYERS = 24
FEATURES, FEATURES_OF_INFLUENTIAL = 8, 3


@dataclass(frozen=True)
class Tile:
    """One key number: its name, its value, a note for comparison."""

    name: str
    value: str
    note: str
    error: str = ""
    tone: str = ""


def render(document: AuditDocument) -> str:
    """Render an audit as one HTML page: escaped, static, deterministic; it fetches nothing.

    Raises:
        InputError: an unknown verdict status, or an example without its image or features.
    """
    if document.verdict.status not in STATUS:
        raise InputError(
            f"verdict status {document.verdict.status!r}",
            expected=f"one of {', '.join(STATUS)}",
            hint="pass one of them",
        )
    _check_shown(document)
    names = {row.label: row.name for row in document.classes}

    def class_name(label: int) -> str:
        return names.get(label, str(label))

    environment = Environment(
        loader=PackageLoader("kernelmem.auditing", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=count,
        number=number,
        signed=signed,
        share=share,
        p_value=p_value,
        class_name=class_name,
    )
    return environment.get_template("report.html.j2").render(
        document=document,
        status=STATUS[document.verdict.status],
        claimed=document.verdict.status != "no-claim",
        found=document.verdict.status == "memorized",
        tiles=_tiles(document),
        distribution=figures.distribution(document),
        two_statistics=figures.two_statistics(document),
        flip_curves=figures.flip_curves(document),
        plus_minus=plus_minus,
        shown=_shown(document),
        direction=_direction,
        name=class_name,
        most_layers=MOST_LAYERS,
        absent=ABSENT,
        pixelated=max(document.data.image_shape or (0,)) < 96,
    )


def _check_shown(document: AuditDocument) -> None:
    """Check that every row shown has its image or features."""
    for index in _indices(document.examples):
        if document.data.image_shape is None:
            valid = str(index) in document.features
        else:  # an img tag may hold nothing but a PNG written by this package
            valid = document.images.get(str(index), "").startswith(PREFIX)
        if not valid:
            kind = "features" if document.data.image_shape is None else "images"
            raise InputError(
                f"an example with training row {index}, which is missing in document.{kind}",
                expected="an entry for every row shown",
                hint=f"add document.{kind}[{str(index)!r}]",
            )


def _indices(examples: tuple[Example, ...]) -> list[int]:
    return sorted({e.index for e in examples} | {row.index for e in examples for row in e.influential})


def _shown(document: AuditDocument) -> Callable[[int, bool], Mapping[str, object]]:
    """Return the function that gives a row's image, or its first features and the number of those left out."""
    width = math.prod(document.data.input_shape)  # the document may hold fewer features than the row has

    def show(index: int, small: bool) -> Mapping[str, object]:
        if document.data.image_shape is not None:
            return {"image": document.images[str(index)], "features": (), "more": 0}
        features = document.features[str(index)]
        kept = FEATURES_OF_INFLUENTIAL if small else FEATURES
        return {"image": None, "features": features[:kept], "more": max(0, width - kept)}

    return show


def _direction(example: Example, influence: float, name: Callable[[int], str]) -> str:
    """Return the class toward which another row moves the prediction: the given label or the leave-one-out prediction."""
    if influence > 0:
        return f"toward {name(example.label)}"
    if example.loo_prediction == example.label:
        return f"away from {name(example.label)}"
    return f"toward {name(example.loo_prediction)}"


def _tiles(document: AuditDocument) -> list[Tile]:
    data, model, fidelity = document.data, document.model, document.fidelity
    memorization, flips = document.memorization, document.flips
    claimed = document.verdict.status != "no-claim"
    tiles = [
        Tile(
            "Test accuracy",
            share(model.test_accuracy),
            f"of {count(data.n_test)} rows, {data.n_classes} classes",
        ),
        Tile("Train accuracy", share(model.train_accuracy), f"of {count(data.n_train)} rows, labels as given"),
    ]
    if claimed:
        chance = f"{number(memorization.expected_by_chance, 2)} expected by chance, p {p_value(memorization.p_value)}"
        value = f"{count(len(memorization.memorized))} of {count(data.n_train)}"
        tiles.append(Tile("Memorized rows", value, chance, tone=document.verdict.status))
    else:
        note = "withheld: the NTK surrogate does not approximate the network"
        tiles.append(Tile("Memorized rows", ABSENT, note, tone="no-claim"))
    value, error = plus_minus(fidelity.agreement, fidelity.agreement_se, percent=True).split(" ± ")
    note = f"of test rows: same class by surrogate and network; {number(100 * fidelity.agreement_required)}% required"
    tiles.append(Tile("Fidelity", value, note, error, "" if claimed else "no-claim"))
    if flips.auroc is not None:
        value, error = plus_minus(flips.auroc, flips.auroc_se or 0.0).split(" ± ")
        note = f"of {count(flips.n or 0)} known flips, by leave-one-out margin"
        tiles.append(Tile("AUROC", value, note, error if flips.auroc_se is not None else ""))
    return tiles


def count(value: int) -> str:
    """Format a whole number with thousands separators.

    Example:
        >>> count(12345)
        '12,345'
    """
    return f"{value:,}".replace("-", MINUS)


def number(value: float | None, digits: int = 3) -> str:
    """Format a number with ``digits`` significant digits.

    Example:
        >>> [number(v) for v in (0.0, 12.0, -0.12345, 1234.5, 0.00001234, None)]
        ['0', '12', '−0.123', '1,234', '1.23 × 10⁻⁵', '–']
    """
    if value is None or not math.isfinite(value):
        return ABSENT
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}".replace("-", MINUS)
    exponent = int(f"{value:.{digits - 1}e}".split("e")[1])  # after rounding: 9.996 has exponent 1
    if not -4 < exponent < 7:
        raised = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return f"{value / 10.0**exponent:.{digits - 1}f} × 10{raised}".replace("-", MINUS)
    return f"{value:,.{max(0, digits - 1 - exponent)}f}".replace("-", MINUS)


def signed(value: float) -> str:
    """Format a number with its sign.

    Example:
        >>> signed(0.5), signed(-0.5)
        ('+0.500', '−0.500')
    """
    return ("+" if value > 0 else "") + number(value)


def share(value: float | None) -> str:
    """Format a share as a percentage; 100% and 0% appear only if exact.

    Example:
        >>> [share(v) for v in (1.0, 0.99996, 0.9125, 0.0, None)]
        ['100%', '99.996%', '91.3%', '0%', '–']
    """
    if value is None:
        return ABSENT
    if value in (0, 1):
        return f"{value:.0%}"
    digits = next((d for d in range(1, 6) if 0 < round(100 * value, d) < 100), 6)
    return f"{math.floor(100 * value * 10**digits + 0.5) / 10**digits:.{digits}f}%"


def plus_minus(value: float, error: float, *, percent: bool = False) -> str:
    """Format a value with its standard error, to the digits that the error leaves.

    Example:
        >>> plus_minus(0.9983, 0.0011), plus_minus(0.965, 0.009, percent=True), plus_minus(-3.0, 0.0)
        ('0.9983 ± 0.0011', '96.5% ± 0.9%', '−3 ± 0')
    """
    scale, unit = (100, "%") if percent else (1, "")
    value, error = scale * value, scale * error
    if not error > 0:
        return f"{number(value)}{unit} ± {number(error)}{unit}"
    # One digit of the error, two where it starts with 1 or 2; one decimal of a percentage
    exponent = math.floor(math.log10(error))
    decimals = min(6, max(0, (error < 3 * 10.0**exponent) - exponent))
    if percent and error >= 0.1:
        decimals = 1
    return f"{value:,.{decimals}f}{unit} ± {error:.{decimals}f}{unit}".replace("-", MINUS)


def p_value(value: float) -> str:
    """Format a p-value with its relation, cut at 0.001.

    Example:
        >>> p_value(1e-12), p_value(0.0312), p_value(0.41), p_value(1.0)
        ('< 0.001', '= 0.031', '= 0.41', '= 1')
    """
    return "< 0.001" if value < 0.001 else f"= {number(value, 2)}"
