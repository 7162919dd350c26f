"""Membership inference: attacks, and their rates with intervals.

- ``signals``: :class:`MembershipOptions`; the statistic of every model on every row;
- ``attacks``: :func:`attack_scores`, one score per row for one target model;
- ``lira``, ``quantile``: the likelihood-ratio attack and quantile regression;
- ``inference``: :func:`membership`, an attack on every model of an ensemble, or on one given model;
- ``result``: :class:`Membership`, rates, control and records;
- ``rates``: true-positive rate at a false-positive rate, with the error of the threshold;
- ``equivalence``: test that an attack is no better than guessing by more than a margin, with its power;
- ``blind_baseline``: classifiers that tell members from non-members without the model;
- ``shadow_fidelity``: shadow models compared with a target.
"""

from kernelmem.memorization.membership.attacks import attack_scores as attack_scores
from kernelmem.memorization.membership.blind_baseline import BlindBaseline as BlindBaseline
from kernelmem.memorization.membership.blind_baseline import blind_baseline as blind_baseline
from kernelmem.memorization.membership.equivalence import Equivalence as Equivalence
from kernelmem.memorization.membership.equivalence import equivalence_test as equivalence_test
from kernelmem.memorization.membership.inference import membership as membership
from kernelmem.memorization.membership.rates import TprAtFpr as TprAtFpr
from kernelmem.memorization.membership.rates import tpr_at_fpr as tpr_at_fpr
from kernelmem.memorization.membership.result import Membership as Membership
from kernelmem.memorization.membership.shadow_fidelity import ShadowFidelity as ShadowFidelity
from kernelmem.memorization.membership.shadow_fidelity import shadow_fidelity as shadow_fidelity
from kernelmem.memorization.membership.signals import MembershipOptions as MembershipOptions
