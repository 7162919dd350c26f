"""Membership inference on documents, with gates that come first.

- ``text_membership``: :func:`text_membership` and its result;
- ``scores``: scores of documents from the losses of their tokens;
- ``gates``: what tells members from unseen documents without training.
"""

from kernelmem.text.membership.gates import Gate as Gate
from kernelmem.text.membership.text_membership import ScoreRates as ScoreRates
from kernelmem.text.membership.text_membership import TextMembership as TextMembership
from kernelmem.text.membership.text_membership import text_membership as text_membership
