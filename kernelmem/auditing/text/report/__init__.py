"""Report of a text audit: one static HTML page without scripts that opens offline.

- ``page``: :func:`render_text_page`, the page from the document; its template and style sheet are in ``templates/``, those
  that it shares with the page of a classifier in ``kernelmem.auditing.report``;
- ``figures``: the drawings;
- ``highlight``: tokens of a document, marked by the bits that the model saves on them.
"""

from kernelmem.auditing.text.report.page import render_text_page as render_text_page
