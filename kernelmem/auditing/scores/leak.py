"""Membership inference against the audited network and against its training."""

import numpy as np
import torch
from torch import Tensor

from kernelmem.auditing.data_checks import AuditInputs
from kernelmem.auditing.schema import AttackRate, AttackResult, Leak, WorstRecord
from kernelmem.core.errors import InputError
from kernelmem.memorization.membership import (
    Equivalence,
    Membership,
    TprAtFpr,
    attack_scores,
    equivalence_test,
    membership,
    tpr_at_fpr,
)
from kernelmem.memorization.membership import MembershipOptions as Options
from kernelmem.memorization.output_statistics import label_statistic
from kernelmem.memorization.shadows import ShadowEnsemble
from kernelmem.statistics import Interval, auroc_interval

FALSE_POSITIVE_RATES = (0.1, 0.01, 0.001)
PRIORS = (0.01, 0.1, 0.5)
N_WORST = 10
NO_SHADOWS = (
    "Attacks with shadow models (calibrated loss, likelihood ratio): no retrained models with outputs on the test rows."
)
OTHER_ATTACKS = (
    "label-only attacks: they see less than the attacks that were run",
    "attacks that read the weights or gradients of the model",
    "reconstruction and extraction of training inputs",
    "exposure of planted canaries: none were planted before training",
)


def leak(inputs: AuditInputs, shadows: ShadowEnsemble | None, unseen: Tensor, *, seed: int, redact: bool) -> Leak:
    """Attack the audited network: its training rows are the members, unseen test rows the non-members.

    The loss attack needs the network only. With shadow models, the loss is calibrated by their mean without the row, and the
    one-sided likelihood ratio attack (offline LiRA) is run; the training is attacked too, each shadow model by the others.

    Args:
        inputs: data and outputs of the network.
        shadows: shadow models with outputs on the test rows, or None.
        unseen: (u,) test rows that are not near-duplicates of training rows.
        seed: seed of the permuted memberships.
        redact: True to leave out the labels of the worst records.
    """
    data = inputs.data
    outputs = torch.cat([inputs.train_outputs, inputs.test_outputs[unseen]])
    labels = torch.cat([data.y_train, data.y_test[unseen]])
    members = torch.arange(len(labels)) < len(data.y_train)
    scores = {"loss": label_statistic(outputs, labels, "log_likelihood")}
    not_run = [f"{text[0].upper()}{text[1:]}." for text in OTHER_ATTACKS]
    algorithm: Membership | None = None
    usable = shadows is not None and shadows.test_logits.shape[1] == len(data.y_test)
    if shadows is not None and usable:
        pooled = with_test_rows(shadows, data.y_test, unseen, seed=seed)
        offline = Options(offline=True)
        scores["calibrated loss"] = attack_scores(pooled, outputs, attack="calibrated", seed=seed, options=offline)
        scores["likelihood ratio (offline LiRA)"] = attack_scores(
            pooled, outputs, attack="lira", seed=seed, options=offline
        )
    else:
        not_run.insert(0, NO_SHADOWS)
    attacks = [_attack(name, score, members, seed) for name, score in scores.items()]
    if shadows is not None:
        try:
            algorithm = membership(shadows, attack="lira", seed=seed, progress=False)
            attacks.append(_algorithm_attack(algorithm))
        except InputError as error:
            not_run.insert(0, f"Likelihood ratio attack on the training: {error}")
    strongest = list(scores)[-1]
    test = equivalence_test(scores[strongest], members)
    worst, meaning = _worst(scores[strongest], strongest, algorithm, len(data.y_train))
    return Leak(
        attacks=tuple(attacks),
        worst=tuple(WorstRecord(row, None if redact else int(data.y_train[row]), value) for row, value in worst),
        worst_meaning=meaning,
        equivalence=_equivalence_text(test, strongest),
        equivalent=bool(test.equivalent),
        not_run=tuple(not_run),
    )


def with_test_rows(shadows: ShadowEnsemble, y_test: Tensor, unseen: Tensor, *, seed: int) -> ShadowEnsemble:
    """Return the ensemble on its rows and on unseen test rows, for offline attacks, which use models without a row.

    No model was trained on a test row, but each test row is given the mask of a random training row: with more models than a
    training row has, its score would be less noisy, and the noise would tell members from non-members.
    """
    generator = torch.Generator().manual_seed(seed)
    like = torch.randint(shadows.n_rows, (len(unseen),), generator=generator)
    return ShadowEnsemble(
        torch.cat([shadows.masks, shadows.masks[:, like]], 1),
        torch.cat([shadows.logits, shadows.test_logits[:, unseen]], 1),
        torch.cat([shadows.labels, y_test[unseen]]),
        shadows.test_logits[:, :0],
        shadows.test_labels[:0],
        shadows.identity,
    )


def _attack(name: str, scores: Tensor, members: Tensor, seed: int) -> AttackResult:
    """Return the result of an attack on the audited network, with intervals over rows."""
    permuted = members.numpy()[np.random.default_rng(seed).permutation(len(members))]
    rates = [tpr_at_fpr(scores, members, fpr) for fpr in FALSE_POSITIVE_RATES]
    return AttackResult(
        name=name,
        level="model",
        n_members=int(members.sum()),
        n_nonmembers=int((~members).sum()),
        n_targets=1,
        auc=_interval(auroc_interval(scores, members)),
        null_auc=_interval(auroc_interval(scores, permuted)),
        rates=tuple(_rate(rate) for rate in rates),
        predictive_values=_predictive_values(rates),
    )


def _algorithm_attack(result: Membership) -> AttackResult:
    """Return the result of the attack on the training, with intervals over models."""
    return AttackResult(
        name="likelihood ratio (LiRA)",
        level="algorithm",
        n_members=int(result.members.sum()),
        n_nonmembers=int((~result.members).sum()),
        n_targets=len(result.scores),
        auc=_interval(result.auc),
        null_auc=_interval(result.null_auc),
        rates=tuple(_rate(rate) for rate in result.rates),
        predictive_values=_predictive_values(list(result.rates)),
    )


def _interval(interval: Interval) -> Interval:
    return Interval(*(float(v) for v in (interval.value, interval.low, interval.high, interval.level)))


def _rate(rate: TprAtFpr) -> AttackRate:
    value = None if rate.value is None else Interval(float(rate.value), float(rate.low), float(rate.high), rate.level)
    return AttackRate(rate.fpr, value, rate.reason)


def _predictive_values(rates: list[TprAtFpr]) -> tuple[tuple[float, float | None], ...]:
    """Return (prior, precision) at the smallest false positive rate that could be measured."""
    measured = [rate for rate in rates if rate.value is not None]
    smallest = min(measured, key=lambda rate: rate.fpr) if measured else None
    return tuple((prior, None if smallest is None else smallest.precision(prior)) for prior in PRIORS)


def _worst(scores: Tensor, name: str, algorithm: Membership | None, n: int) -> tuple[list[tuple[int, float]], str]:
    """Return the training rows that are easiest to identify with their values, and the meaning of the values."""
    if algorithm is not None:
        rows = sorted(algorithm.worst(min(N_WORST, n)), key=lambda row: -float(algorithm.separation[row]))
        return (
            [(row, float(algorithm.separation[row])) for row in rows],
            "Distance between the attack's statistic of models with and without the record, in standard deviations (d′).",
        )
    order = scores[:n].argsort(descending=True, stable=True)[:N_WORST].tolist()
    return [(row, float(scores[row])) for row in order], f"Score of the {name} attack; larger = more likely a member."


def _equivalence_text(test: Equivalence, name: str) -> str:
    """Return the result of the equivalence test and its power in two sentences."""
    bounds = (
        f"AUC below {test.auc_margin:g} and true positive rates below {test.tpr_factor:g} times the false positive rate"
    )
    shown = f"{bounds}: " + ("shown." if test.equivalent else f"not shown ({'; '.join(test.not_shown)}).")
    return (
        f"{name[0].upper()}{name[1:]} attack, {shown} An AUC of {test.detectable_auc:.3f} would have been detected with"
        f" probability .8."
    )
