"""HTML of a sentence and its teachers: tokens colored by bits, shared spans underlined."""

import unicodedata
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kernelmem.text.attribution.result import Teachers

SAVED, LOST = "59,111,196", "217,120,15"  # blue and orange, distinguishable with every kind of color vision
HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # categories of characters that are shown as code points
STYLE = (
    ".teachers{font:14px/1.7 system-ui,sans-serif;color:#1d2433;max-width:60em}"
    ".teachers p{margin:.3em 0;white-space:pre-wrap;overflow-wrap:anywhere}"
    ".teachers .text{font-family:ui-monospace,monospace;border-left:3px solid #d5d9e1;padding-left:.7em}"
    ".teachers .head{margin-top:1em;color:#5b6475}.teachers b{color:#1d2433}"
    ".teachers u{text-decoration-color:#1d2433;text-decoration-thickness:2px;text-underline-offset:3px}"
    ".teachers .cp{font-size:75%;border:1px solid #8a93a3;border-radius:3px;padding:0 2px}"
)


def render(teachers: "Teachers") -> str:
    """Return an HTML fragment with its style; no scripts, no links."""
    saved, revealed = teachers.saved, teachers.revealed
    change = teachers.change
    total = saved.sum(0) if change is None else change.saved
    sentence = [f"{i}" for i in range(teachers.size)] if revealed is None else list(revealed.sentence)
    separator = " " if revealed is None else ""
    parts = [
        _head("<b>Sentence</b>, tokens colored by the bits that training saved" if change else "<b>Sentence</b>"),
        _text(_colored(sentence, teachers.positions.tolist(), total.tolist(), separator)),
        _head(_legend(teachers.meaning, revealed is None)),
    ]
    scale = float(saved[teachers.shown].abs().max()) if len(teachers.shown) else 0.0
    excess, contribution = teachers.excess, teachers.contribution
    for k, i in enumerate(teachers.shown.tolist()):
        own = ", contains the sentence" if bool(teachers.own[i]) else ""
        kind = f", {_visible(teachers.kind_names[int(teachers.kinds[i])])}" if len(teachers.kind_names) > 1 else ""
        passes = "" if teachers.passes is None else f", used in {int(teachers.passes[i])} steps"
        parts.append(
            _head(
                f"<b>document {i}</b>{kind}{own}{passes}: {float(contribution[i]):+.3g} bits, {float(excess[i]):+.3g} above"
                f" others of its kind, shares {int(teachers.spans.longest[i])} tokens"
            )
        )
        parts.append(_text(_colored(sentence, teachers.positions.tolist(), saved[i].tolist(), separator, scale)))
        if revealed is not None:
            parts.append(_text(_underlined(revealed.documents[k], teachers.spans.of(i))))
    parts += [_head(_visible(note)) for note in teachers.notes]
    return f"<style>{STYLE}</style><div class='teachers'>{''.join(parts)}</div>"


def _legend(meaning: str, redacted: bool) -> str:
    swatches = f"<span style='background:rgba({SAVED},.6)'> saved </span> <span style='background:rgba({LOST},.6)'> cost </span>"
    text = " Text is redacted: tokens are shown by their number." if redacted else " Shared spans are underlined."
    return f"{swatches} {escape(meaning)}.{text}"


def _head(html: str) -> str:
    return f"<p class='head'>{html}</p>"


def _text(html: str) -> str:
    return f"<p class='text'>{html}</p>"


def _colored(
    tokens: Sequence[str], positions: Sequence[int], bits: Sequence[float], separator: str, scale: float = 0.0
) -> str:
    """Return tokens on a background as strong as their bits relative to ``scale`` (0: the largest of them)."""
    scale = scale or max(map(abs, bits), default=0.0) or 1.0
    value = dict(zip(positions, bits, strict=True))
    parts: list[str] = []
    for i, token in enumerate(tokens):
        strength = min(1.0, abs(value.get(i, 0.0)) / scale)
        color = SAVED if value.get(i, 0.0) > 0 else LOST
        style = f" style='background:rgba({color},{0.75 * strength:.2f})'" if strength >= 0.01 else ""
        parts.append(f"<span{style}>{_visible(token)}</span>")
    return separator.join(parts)


def _underlined(tokens: Sequence[str], spans: Sequence[tuple[int, int, int]]) -> str:
    """Return tokens with those in spans underlined."""
    shared = {i for start, _, length in spans for i in range(start, start + length)}
    parts: list[str] = []
    for i, token in enumerate(tokens):
        opened = "<u>" if i in shared and i - 1 not in shared else ""
        closed = "</u>" if i in shared and i + 1 not in shared else ""
        parts.append(f"{opened}{_visible(token)}{closed}")
    return "".join(parts)


def _visible(text: str) -> str:
    """Return escaped text, with characters that have no glyph or change the direction of text as code points."""
    return "".join(
        f"<span class='cp'>U+{ord(c):04X}</span>" if unicodedata.category(c) in HIDDEN else escape(c) for c in text
    )
