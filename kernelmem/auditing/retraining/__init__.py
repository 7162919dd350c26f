"""Memorization by retraining: shadow models within a budget, the memorized share behind their noise, literal checks.

- ``budget``: :func:`train_within`, the number of models that a budget of minutes allows;
- ``deconvolution``: distribution of memorization behind noisy counts;
- ``answer``: :func:`retraining_scores`, :func:`retraining_how_much`, :func:`retraining_power`;
- ``fidelity``: :func:`shown_memorization`, the share of the models' memorization that the audited network shows;
- ``verification``: :func:`verify_rows`, retraining without single rows.
"""

from kernelmem.auditing.retraining.answer import RetrainingScores as RetrainingScores
from kernelmem.auditing.retraining.answer import count_correct as count_correct
from kernelmem.auditing.retraining.answer import retraining_how_much as retraining_how_much
from kernelmem.auditing.retraining.answer import retraining_power as retraining_power
from kernelmem.auditing.retraining.answer import retraining_scores as retraining_scores
from kernelmem.auditing.retraining.budget import SHARE as SHARE
from kernelmem.auditing.retraining.budget import Trained as Trained
from kernelmem.auditing.retraining.budget import train_within as train_within
from kernelmem.auditing.retraining.deconvolution import CorrectCounts as CorrectCounts
from kernelmem.auditing.retraining.deconvolution import deconvolve as deconvolve
from kernelmem.auditing.retraining.fidelity import ShownMemorization as ShownMemorization
from kernelmem.auditing.retraining.fidelity import shown_memorization as shown_memorization
from kernelmem.auditing.retraining.verification import verify_rows as verify_rows
