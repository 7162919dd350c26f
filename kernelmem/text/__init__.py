"""Memorization in language models: losses of tokens, canaries, extraction, membership, repeated text.

- ``documents``: ragged token ids;
- ``language_models``: causal language models of any library, and their next-token log-probabilities;
- ``token_losses``: losses of tokens, and the loss of documents for kernels and ledgers;
- ``overlap``: repeated spans, near-duplicates, counts of spans, n-gram models;
- ``extraction``: which documents a model emits after their beginning, with controls;
- ``canaries``: random secrets inserted by coins, proof that they were trained on, exposure, paired tests;
- ``membership``: which documents a model was trained on, with gates.
"""

from kernelmem.text.canaries import Canaries as Canaries
from kernelmem.text.canaries import CanaryRows as CanaryRows
from kernelmem.text.canaries import PairedTest as PairedTest
from kernelmem.text.canaries import SecretExposure as SecretExposure
from kernelmem.text.canaries import TextCoverage as TextCoverage
from kernelmem.text.canaries import canaries as canaries
from kernelmem.text.canaries import coverage as coverage
from kernelmem.text.canaries import exposure as exposure
from kernelmem.text.canaries import paired_test as paired_test
from kernelmem.text.documents import Documents as Documents
from kernelmem.text.documents import as_documents as as_documents
from kernelmem.text.extraction import Extraction as Extraction
from kernelmem.text.extraction import Sampling as Sampling
from kernelmem.text.extraction import emission_probability as emission_probability
from kernelmem.text.extraction import extraction as extraction
from kernelmem.text.extraction import log10_queries as log10_queries
from kernelmem.text.language_models import CausalLM as CausalLM
from kernelmem.text.language_models import causal_lm as causal_lm
from kernelmem.text.membership import TextMembership as TextMembership
from kernelmem.text.membership import text_membership as text_membership
from kernelmem.text.overlap import Duplicates as Duplicates
from kernelmem.text.overlap import NearDuplicates as NearDuplicates
from kernelmem.text.overlap import NgramModel as NgramModel
from kernelmem.text.overlap import SuffixArray as SuffixArray
from kernelmem.text.overlap import duplicates as duplicates
from kernelmem.text.overlap import near_duplicates as near_duplicates
from kernelmem.text.overlap import ngram_model as ngram_model
from kernelmem.text.overlap import suffix_array as suffix_array
from kernelmem.text.token_losses import TokenLosses as TokenLosses
from kernelmem.text.token_losses import document_batch as document_batch
from kernelmem.text.token_losses import document_loss as document_loss
from kernelmem.text.token_losses import token_losses as token_losses
