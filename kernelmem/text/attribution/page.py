"""HTML of a sentence and its teachers: tokens colored by bits, shared spans underlined."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

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


@dataclass(frozen=True)
class Part:
    """A document on the page.

    Attributes:
        number: number of the document.
        facts: what is said of it, in words.
        bits: bits that it saved at each token of the sentence that has a loss.
        tokens: text of its tokens; None: redacted.
        spans: (start, place, length) of the spans that it shares with the sentence.
    """

    number: int
    facts: str
    bits: Sequence[float]
    tokens: Sequence[str] | None
    spans: Sequence[tuple[int, int, int]]


def render(
    sentence: tuple[str, Sequence[str], Sequence[int], Sequence[float]], parts: Sequence[Part], remarks: Sequence[str]
) -> str:
    """Return an HTML fragment with its style; no scripts, no links.

    Args:
        sentence: title, text of each token (or its number), numbers of the tokens that have a loss, bits at these.
        parts: the documents.
        remarks: sentences that follow: the meaning of the colors first.
    """
    title, tokens, positions, bits = sentence
    swatches = f"<span style='background:rgba({SAVED},.6)'> saved </span> <span style='background:rgba({LOST},.6)'> cost </span>"
    blocks = [
        _head(f"<b>sentence</b>, {_visible(title)}"),
        _text(_colored(tokens, positions, bits)),
        _head(f"{swatches} {' '.join(map(_visible, remarks))}"),
    ]
    scale = max((abs(value) for part in parts for value in part.bits), default=0.0)
    for part in parts:
        blocks += [
            _head(f"<b>document {part.number}</b>{_visible(part.facts)}"),
            _text(_colored(tokens, positions, part.bits, scale)),
        ]
        blocks += [] if part.tokens is None else [_text(_underlined(part.tokens, part.spans))]
    return f"<style>{STYLE}</style><div class='teachers'>{''.join(blocks)}</div>"


def _head(html: str) -> str:
    return f"<p class='head'>{html}</p>"


def _text(html: str) -> str:
    return f"<p class='text'>{html}</p>"


def _colored(tokens: Sequence[str], positions: Sequence[int], bits: Sequence[float], scale: float = 0.0) -> str:
    """Return tokens on a background as strong as their bits relative to ``scale`` (0: the largest of them)."""
    scale = scale or max(map(abs, bits), default=0.0) or 1.0
    value = dict(zip(positions, bits, strict=True))
    parts: list[str] = []
    for i, token in enumerate(tokens):
        strength = min(1.0, abs(value.get(i, 0.0)) / scale)
        color = SAVED if value.get(i, 0.0) > 0 else LOST
        style = f" style='background:rgba({color},{0.6 * strength:.2f})'" if strength >= 0.01 else ""
        parts.append(f"<span{style}>{_visible(token)}</span>")
    return "".join(parts)


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
