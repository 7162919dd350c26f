"""Memorization in language models: losses of tokens, canaries, extraction, membership, repeated text.

- ``documents``: ragged token ids;
- ``language_models``: causal language models of any library, and their next-token log-probabilities;
- ``losses``: losses of tokens, training, change by a training, and the loss of documents for kernels and ledgers;
- ``overlap``: repeated spans, near-duplicates, counts of spans, n-gram models;
- ``extractability``: which documents a model emits after their beginning, with controls;
- ``canary``: random secrets inserted by coins, proof that they were trained on, exposure, paired tests;
- ``membership``: which documents a model was trained on, with gates;
- ``attribution``: which documents taught the model what it emits;
- ``retraining``: many small models trained in one batch, with and without each document;
- ``built_in``: documents, canaries and network of the built-in audit.
"""

from kernelmem.text.attribution import NeighbourMemory as NeighbourMemory
from kernelmem.text.attribution import Teachers as Teachers
from kernelmem.text.attribution import TeachersOptions as TeachersOptions
from kernelmem.text.attribution import neighbour_memory as neighbour_memory
from kernelmem.text.attribution import tangent_teachers as tangent_teachers
from kernelmem.text.attribution import teachers as teachers
from kernelmem.text.built_in import CharacterLSTM as CharacterLSTM
from kernelmem.text.built_in import Demonstration as Demonstration
from kernelmem.text.built_in import decode_characters as decode_characters
from kernelmem.text.built_in import demonstration as demonstration
from kernelmem.text.built_in import encode_characters as encode_characters
from kernelmem.text.built_in import topic_blocks as topic_blocks
from kernelmem.text.canary import Canaries as Canaries
from kernelmem.text.canary import CanaryRows as CanaryRows
from kernelmem.text.canary import PairedTest as PairedTest
from kernelmem.text.canary import SecretExposure as SecretExposure
from kernelmem.text.canary import TextCoverage as TextCoverage
from kernelmem.text.canary import canaries as canaries
from kernelmem.text.canary import coverage as coverage
from kernelmem.text.canary import exposure as exposure
from kernelmem.text.canary import paired_test as paired_test
from kernelmem.text.documents import Documents as Documents
from kernelmem.text.documents import as_documents as as_documents
from kernelmem.text.extractability import Extraction as Extraction
from kernelmem.text.extractability import NearVerbatim as NearVerbatim
from kernelmem.text.extractability import Sampling as Sampling
from kernelmem.text.extractability import emission_probability as emission_probability
from kernelmem.text.extractability import extraction as extraction
from kernelmem.text.extractability import extraction_strength as extraction_strength
from kernelmem.text.extractability import log10_queries as log10_queries
from kernelmem.text.extractability import near_verbatim as near_verbatim
from kernelmem.text.extractability import text_template as text_template
from kernelmem.text.language_models import CausalLM as CausalLM
from kernelmem.text.language_models import causal_lm as causal_lm
from kernelmem.text.losses import Change as Change
from kernelmem.text.losses import TextTraining as TextTraining
from kernelmem.text.losses import TokenLosses as TokenLosses
from kernelmem.text.losses import compare as compare
from kernelmem.text.losses import document_batch as document_batch
from kernelmem.text.losses import document_loss as document_loss
from kernelmem.text.losses import token_losses as token_losses
from kernelmem.text.losses import train_language_model as train_language_model
from kernelmem.text.membership import TextMembership as TextMembership
from kernelmem.text.membership import text_membership as text_membership
from kernelmem.text.overlap import Duplicates as Duplicates
from kernelmem.text.overlap import NearDuplicates as NearDuplicates
from kernelmem.text.overlap import NgramModel as NgramModel
from kernelmem.text.overlap import SuffixArray as SuffixArray
from kernelmem.text.overlap import duplicates as duplicates
from kernelmem.text.overlap import near_duplicates as near_duplicates
from kernelmem.text.overlap import ngram_model as ngram_model
from kernelmem.text.overlap import shared_text as shared_text
from kernelmem.text.overlap import suffix_array as suffix_array
from kernelmem.text.retraining import Capacity as Capacity
from kernelmem.text.retraining import Counterfactual as Counterfactual
from kernelmem.text.retraining import capacity as capacity
from kernelmem.text.retraining import counterfactual as counterfactual
