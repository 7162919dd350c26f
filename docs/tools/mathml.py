"""Formulas as MathML, which browsers draw themselves: no script, no network, no LaTeX."""

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)


def _mathml(node: nodes.Element, display: bool) -> str:
    formula = node.astext()
    try:
        tree = latex2mathml.tex2mathml(
            rf"\begin{{aligned}}{formula}\end{{aligned}}" if r"\\" in formula else formula, display
        )
    except Exception as error:  # docutils raises several types for markup that it does not know
        logger.warning("formula %r: %s", formula, error, location=node)
        return ""
    return str(tree)


def _inline(translator, node: nodes.Element) -> None:
    translator.body.append(_mathml(node, display=False))
    raise nodes.SkipNode


def _block(translator, node: nodes.Element) -> None:
    translator.body.append(f'<div class="math">{_mathml(node, display=True)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict:
    """Register the renderer "mathml"."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
