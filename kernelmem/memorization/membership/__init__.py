"""Membership inference: attacks, and their rates with intervals.

- ``signals``: :class:`MembershipOptions`; the statistic of every model on every row;
- ``attacks``: :func:`attack_scores`, one score per row for one target model;
- ``lira``, ``quantile``: the likelihood-ratio attack and quantile regression;
- ``rates``: true-positive rate at a false-positive rate, with the error of the threshold.
"""

from kernelmem.memorization.membership.attacks import attack_scores as attack_scores
from kernelmem.memorization.membership.rates import TprAtFpr as TprAtFpr
from kernelmem.memorization.membership.rates import tpr_at_fpr as tpr_at_fpr
from kernelmem.memorization.membership.signals import MembershipOptions as MembershipOptions
