"""Language models: next-token log-probabilities of any causal model, the same for a document in every batch.

- ``causal_lm``: ``causal_lm``, ``CausalLM``.
- ``calls``: how models are called, and their logits.
- ``adapters``: adapters of PEFT, on or off, without importing it.
- ``probes``: tests of a model on a few tokens: size of the vocabulary, causality, independence of the batch.
- ``states``: states between tokens (recurrent, caches), and their rows.
- ``stepping``: a model that is read one token at a time.
- ``prefixes``: ``Prefixes`` and ``read_prefixes``, prefixes that are extended by one token at a time.
- ``tokenizers``: functions from text to token ids and back, of tokenizers of several libraries.
"""

from kernelmem.text.language_models.calls import LogitsFunction as LogitsFunction
from kernelmem.text.language_models.calls import failure as failure
from kernelmem.text.language_models.calls import ieee_precision as ieee_precision
from kernelmem.text.language_models.calls import model_logits as model_logits
from kernelmem.text.language_models.causal_lm import CausalLM as CausalLM
from kernelmem.text.language_models.causal_lm import causal_lm as causal_lm
from kernelmem.text.language_models.prefixes import Prefixes as Prefixes
from kernelmem.text.language_models.prefixes import read_prefixes as read_prefixes
from kernelmem.text.language_models.probes import check_causal as check_causal
from kernelmem.text.language_models.tokenizers import Decode as Decode
from kernelmem.text.language_models.tokenizers import Encode as Encode
from kernelmem.text.language_models.tokenizers import tokenizer_functions as tokenizer_functions
