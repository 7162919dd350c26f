"""The report: one static HTML page without scripts that opens offline.

- ``page``: :func:`render`, and the formats of its numbers;
- ``templates/``: the HTML and its style sheet;
- ``figures``: its drawings;
- ``thumbnails``: rows of image data as PNG.
"""

from kernelmem.auditing.report.figures import distribution_figure as distribution_figure
from kernelmem.auditing.report.page import render as render
from kernelmem.auditing.report.thumbnails import png_data_uri as png_data_uri
