"""Losses of tokens: bits of every token of ragged documents, in one pass or in sliding windows, training, change.

- ``token_losses``: ``token_losses``.
- ``result``: ``TokenLosses``.
- ``targets``: tokens on which training put loss.
- ``windows``: inputs of the passes and the tokens that each of them scores.
- ``comparison``: ``compare``; ``change``: ``Change``, its result.
- ``document_loss``: ``document_loss`` and ``document_batch``, the ``forward=`` of kernels and ledgers.
- ``training``: ``train_language_model`` and its recipe, ``TextTraining``.
"""

from kernelmem.text.losses.change import Change as Change
from kernelmem.text.losses.comparison import compare as compare
from kernelmem.text.losses.document_loss import document_batch as document_batch
from kernelmem.text.losses.document_loss import document_loss as document_loss
from kernelmem.text.losses.result import TokenLosses as TokenLosses
from kernelmem.text.losses.token_losses import token_losses as token_losses
from kernelmem.text.losses.training import TextTraining as TextTraining
from kernelmem.text.losses.training import train_language_model as train_language_model
