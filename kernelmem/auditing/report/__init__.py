"""The report: one static HTML page without scripts that opens offline, and the summary for terminals.

- ``page``: :func:`render_page`, the page from document and row table; its templates and style sheet are in ``templates/``;
- ``environment``: the templates, shared with the page of a text audit;
- ``summary``: :func:`summary`, the text for terminals;
- ``wording``: the sentences that both share;
- ``formats``: numbers, shares, intervals and p-values as text;
- ``figures``, ``svg``: the drawings;
- ``thumbnails``: rows of image data as PNG;
"""

from kernelmem.auditing.report.environment import page_environment as page_environment
from kernelmem.auditing.report.figures import plot_scores as plot_scores
from kernelmem.auditing.report.formats import format_number as format_number
from kernelmem.auditing.report.formats import format_share as format_share
from kernelmem.auditing.report.page import render_page as render_page
from kernelmem.auditing.report.summary import summary as summary
from kernelmem.auditing.report.svg import COLORS as COLORS
from kernelmem.auditing.report.svg import wide_and_narrow as wide_and_narrow
from kernelmem.auditing.report.thumbnails import png_data_uri as png_data_uri
