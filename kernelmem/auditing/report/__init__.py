"""The report: one static HTML page without scripts that opens offline, and the summary for terminals.

- ``page``: :func:`render_page`, the page from document and row table; its templates and style sheet are in ``templates/``;
- ``summary``: :func:`summary`, the text for terminals;
- ``wording``: the sentences that both share;
- ``formats``: numbers, shares, intervals and p-values as text;
- ``figures``, ``svg``: the drawings;
- ``thumbnails``: rows of image data as PNG;
"""

from kernelmem.auditing.report.figures import plot_scores as plot_scores
from kernelmem.auditing.report.page import render_page as render_page
from kernelmem.auditing.report.summary import summary as summary
from kernelmem.auditing.report.thumbnails import png_data_uri as png_data_uri
