"""Compression: how many bits of the labels are in the data, and how many in the network.

- ``coder/``: entropy coder (rANS) and integer frequencies;
- ``online/``: code lengths of labels that are predicted one after the other, by kernels or by any learner;
- ``accounting/``: bits of the labels split into what follows from the other rows, what is memorized, and what is in neither;
- ``cards/``: files with a quantized network and the labels given it;
- ``verification/``: checks that a predictor of labels gives a code that decodes;
- ``certificates``: bounds on the error rate from code lengths, from online mistakes, from held-out rows.
"""

from kernelmem.compression.accounting import Account as Account
from kernelmem.compression.accounting import account as account
from kernelmem.compression.cards import Card as Card
from kernelmem.compression.cards import CardOptions as CardOptions
from kernelmem.compression.cards import card as card
from kernelmem.compression.cards import open_card as open_card
from kernelmem.compression.certificates import Certificate as Certificate
from kernelmem.compression.certificates import certificate as certificate
from kernelmem.compression.certificates import held_out_certificate as held_out_certificate
from kernelmem.compression.certificates import online_certificate as online_certificate
from kernelmem.compression.online import KernelPredictor as KernelPredictor
from kernelmem.compression.online import LearnerPredictor as LearnerPredictor
from kernelmem.compression.online import OnlineCode as OnlineCode
from kernelmem.compression.online import OnlineOptions as OnlineOptions
from kernelmem.compression.online import lengths_over_orders as lengths_over_orders
from kernelmem.compression.online import online_code as online_code
from kernelmem.compression.verification import Verification as Verification
from kernelmem.compression.verification import verify_code as verify_code
