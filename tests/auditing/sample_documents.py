"""Sample audit documents with their row tables, one for each variant of the report: digits and kernel regression."""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics.pairwise import rbf_kernel

from kernelmem.auditing.report.thumbnails import png_data_uri
from kernelmem.auditing.schema import (
    SCHEMA_VERSION,
    Agreement,
    AnnexLine,
    AttackRate,
    AttackResult,
    AuditDocument,
    Compression,
    Context,
    DataIdentity,
    Duplicates,
    Flips,
    Gate,
    HowMuch,
    InfluentialRow,
    KernelFidelity,
    Leak,
    ModelIdentity,
    Power,
    RowFinding,
    RowTable,
    Slice,
    SuspectedLabel,
    SuspectedLabels,
    Verdict,
    WorstRecord,
)
from kernelmem.statistics import Interval, clopper_pearson, mean_interval

VARIANTS = ("retraining", "kernel", "nothing", "no-claim", "features", "redacted", "hostile", "long", "bare")
HOSTILE = '<script>alert("1")</script>'
N, M, RIDGE, SHOWN = 600, 400, 0.3, 12
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Sample:
    """Images x, wrong labels, the row table, and effects of one row on another (its row: the affected one)."""

    x: np.ndarray
    flipped: np.ndarray
    table: RowTable
    effects: np.ndarray


@cache
def sample(n_classes: int, rate: float) -> Sample:
    """Kernel ridge on digits with ``rate`` wrong labels, left out in closed form; a row with a wrong label is memorized."""
    rng = np.random.default_rng(7)
    x, truth = (np.asarray(array) for array in load_digits(return_X_y=True))
    order = rng.permutation(len(x))[: N + M]
    x, truth = x[order], truth[order]
    if n_classes > 10:
        truth = truth + 10 * rng.integers(0, n_classes // 10, N + M)
    flipped = np.zeros(N + M, bool)
    flipped[rng.choice(N, round(rate * N), replace=False)] = True
    label = truth.copy()
    label[flipped] = (label[flipped] + rng.integers(1, n_classes, flipped.sum())) % n_classes
    kernel = rbf_kernel(x, gamma=0.0012)
    inverse = np.linalg.inv(kernel + RIDGE * np.eye(N + M))
    targets = np.eye(n_classes)[label] - 1 / n_classes
    dual = inverse @ targets
    without = targets - dual / inverse.diagonal()[:, None]
    rows = np.arange(N + M)
    others = without.copy()
    others[rows, label] = -np.inf
    margin = without[rows, label] - others.max(1)
    correct = rng.random(N) < 0.99
    vote = without.argmax(1)
    memorized = np.clip((margin < 0) * 0.6 + rng.normal(0.02, 0.08, N + M), -0.2, 1)[:N]
    control_correct = rng.random(M) < 0.93
    return Sample(
        x,
        flipped[:N],
        RowTable(
            label=label[:N].astype(np.int64),
            predicted_without=vote[:N].astype(np.int64),
            score=memorized,
            standard_error=np.full(N, 0.07),
            loo_margin=margin[:N],
            label_memorization=(targets - without)[rows, label][:N] * 0.7,
            surrogate_difference=rng.normal(0.1, 0.6, N),
            network_correct=correct,
            flagged=(margin[:N] < 0) & correct,
            memorization=memorized,
            left_out_bits=np.where(margin < 0, 4.0, 0.2)[:N],
            memorized_bits=np.where(margin < 0, 3.9, 0.1)[:N],
            group=np.arange(N),
            control_index=np.arange(M),
            control_margin=margin[N:],
            control_flagged=(margin[N:] < 0) & control_correct & (rng.random(M) < 0.2),
        ),
        kernel[:N, :N] * dual[:N].max(1),
    )


def kernel_table(table: RowTable) -> RowTable:
    """Return the row table of an audit without retraining."""
    missing = np.full(N, np.nan)
    return replace(table, score=-table.loo_margin, standard_error=missing, memorization=missing)


def findings(sample: Sample, table: RowTable, retrained: bool, known: bool) -> tuple[RowFinding, ...]:
    order = np.lexsort((-table.score, ~table.flagged))
    last = order[table.flagged[order]][:SHOWN].tolist() + order[~table.flagged[order]][:4].tolist()
    rows = []
    for position, i in enumerate(last):
        effects = sample.effects[i].copy()
        effects[i] = 0
        predicted = float(np.clip(sample.table.memorization[i], 0, 1))
        mislabelled = table.predicted_without[i] != table.label[i]
        rows.append(
            RowFinding(
                index=int(i),
                label=int(table.label[i]),
                predicted_without=int(table.predicted_without[i]),
                score=float(table.score[i]),
                standard_error=float(table.standard_error[i]) if retrained else None,
                flagged=bool(table.flagged[i]),
                reason="mislabelled"
                if mislabelled
                else ("rare", "duplicate", "boundary", "not classified")[position % 4],
                predicted_effect=predicted if retrained else None,
                verified_effect=Interval(predicted * 0.9, predicted * 0.7, min(1.0, predicted + 0.2), 0.95)
                if retrained and position < 5
                else None,
                memorized_bits=float(table.memorized_bits[i]) if retrained else None,
                flipped=bool(sample.flipped[i]) if known else None,
                influential=tuple(
                    InfluentialRow(int(j), int(table.label[j]), float(effects[j]))
                    for j in np.argsort(-np.abs(effects))[:3]
                ),
            )
        )
    return tuple(rows)


def how_much(table: RowTable, retrained: bool) -> HowMuch:
    share = clopper_pearson(int(table.flagged.sum()), N)
    return HowMuch(
        method="retraining" if retrained else "kernel",
        definition="A training row is memorized if training with it raises the probability of its label by more than 25 %."
        if retrained
        else "A training row is memorized if the network gives its label although the other rows predict another class.",
        fraction=share,
        mean=mean_interval(table.memorization) if retrained else None,
        n_flagged=int(table.flagged.sum()),
        n_rows=N,
        control=clopper_pearson(int(table.control_flagged.sum()), M),
        control_definition="test rows, one of each group of near-duplicates, which the network never saw",
        n_control=M,
        expected_by_chance=float(N * table.control_flagged.mean()),
        p_value=1e-12,
        n_models=64 if retrained else 0,
    )


def leak(table: RowTable, retrained: bool) -> Leak:
    interval = Interval(0.641, 0.612, 0.669, 0.95)
    null = Interval(0.502, 0.471, 0.533, 0.95)
    rates = (
        AttackRate(0.1, Interval(0.21, 0.18, 0.25, 0.95), ""),
        AttackRate(0.01, Interval(0.085, 0.041, 0.132, 0.95), ""),
        AttackRate(0.001, None, "400 rows that are not members resolve no rate below 0.25 %"),
    )
    loss = AttackResult("loss", "model", N, M, 1, interval, null, rates, ((0.01, 0.08), (0.1, 0.49), (0.5, None)))
    lira = replace(loss, name="LiRA, offline", auc=Interval(0.722, 0.695, 0.748, 0.95))
    pooled = replace(
        lira, name="LiRA, online", level="algorithm", n_targets=16, n_members=16 * 300, n_nonmembers=16 * 300,
        rates=(rates[0], rates[1], AttackRate(0.001, Interval(0.02, 0.008, 0.034, 0.95), "")),
    )  # fmt: skip
    worst = np.argsort(-table.score)[:8]
    return Leak(
        attacks=(loss, lira, pooled) if retrained else (loss,),
        worst=tuple(WorstRecord(int(i), int(table.label[i]), 3.1 - 0.2 * k) for k, i in enumerate(worst))
        if retrained
        else (),
        worst_meaning="Difference of the attack's mean score as member and as non-member, in standard deviations.",
        equivalence="The attack succeeds: its AUC .641 is above the margin .55 (one-sided p < .001). The test would have"
        " noticed an AUC of .548 with probability .8.",
        equivalent=False,
        not_run=(
            "Attacks with access to gradients: outputs only.",
            "Attacks with adaptive canaries: needs retraining.",
        ),
    )


def slices(table: RowTable, names: tuple[str, ...], groups: tuple[str, ...]) -> tuple[Slice, ...]:
    result = []
    for position, name in enumerate((*names, *groups)):
        is_class = position < len(names)
        chosen = table.label == position if is_class else np.arange(N) % len(groups) == position - len(names)
        n = int(chosen.sum())
        count = int(table.flagged[chosen].sum())
        result.append(
            Slice(
                kind="class" if is_class else "group",
                name=name,
                n_train=n,
                n_test=30 if is_class and position != 3 else 0,
                n_flagged=count,
                fraction=clopper_pearson(count, n) if n else None,
                adjusted_p=(0.003 if position == 1 else 1.0) if n else None,
                train_accuracy=1.0 if n else None,
                test_accuracy=0.93 if is_class and position != 3 else None,
                n_contradicted=int((table.predicted_without != table.label)[chosen].sum()),
            )
        )
    return tuple(result)


def suspected(sample: Sample, table: RowTable, known: bool) -> SuspectedLabels:
    contradicted = np.flatnonzero(table.loo_margin < 0)
    order = contradicted[np.argsort(table.loo_margin[contradicted])]
    both = int(table.flagged[order].sum())
    return SuspectedLabels(
        n=len(order),
        n_memorized=both,
        known_flips=int(sample.flipped.sum()) if known else None,
        known_flips_suspected=int(sample.flipped[order].sum()) if known else None,
        meaning=f"The other rows contradict {len(order)} labels; the network gives {both} of these labels anyway and is"
        " counted as having memorized them.",
        rows=tuple(
            SuspectedLabel(
                int(i), int(table.label[i]), int(table.predicted_without[i]), float(table.loo_margin[i]),
                bool(table.flagged[i]),
            )
            for i in order[:10]
        ),
    )  # fmt: skip


def flips(sample: Sample) -> Flips:
    hits = sample.flipped[np.argsort(sample.table.loo_margin)].cumsum()
    ranks = np.arange(1, 2 * sample.flipped.sum() + 1)
    n = int(sample.flipped.sum())
    return Flips(
        n, Interval(0.9983, 0.9961, 0.9993, 0.95), (("label_memorization", 0.9921), ("score", 0.9544)), 0.5012, 0.031,
        tuple((hits[ranks - 1] / ranks).tolist()), tuple((hits[ranks - 1] / n).tolist()), tuple(ranks.tolist()),
    )  # fmt: skip


ESTIMATED = Compression(
    status="estimated",
    sentence="The labels hold 1,993 bits; 1,419 follow from the other rows. The network holds 570 more (null -1), about 473"
    " of them label noise (estimated 10.0% ± 1.4% of the labels); 4 are in neither. Without the network a decoder needs 871.",
    reference="NTK of the re-initialized network",
    uniform=1993.16,
    online=871.0,
    left_out=573.95,
    network=3.9,
    memorized=570.05,
    noise_rate=0.1003,
    noise_rate_error=0.0135,
    noise=472.6,
    nulls=(("untrained network", -1.0),),
)
COMPRESSION = {
    "nothing": replace(ESTIMATED, memorized=-1.0, network=574.95, online=None),
    "features": Compression("not estimable", "Not estimable: the reference predicts them no better."),
    "bare": Compression("not run", "Not run: Got 90,000 rows; expected fewer. Hint: more memory"),
    "hostile": replace(ESTIMATED, nulls=((HOSTILE, 3.0), ("network trained on re-drawn labels", -0.4))),
}


GATES = (
    Gate("blind baseline", "Can a classifier that never saw the network tell training rows from test rows?", True,
         "AUC 0.51 (0.47 to 0.55)", "interval contains 0.5", "Training and test rows come from the same population."),
    Gate("surrogate fidelity", "Does the kernel regression predict the same classes as the network?", True,
         "96.5 % ± 0.9 %", "at least 90 %", "Leave-one-out predictions of the regression approximate the network's."),
    Gate("near-duplicates", "Are the control rows independent of the training rows?", True, "3 of 400 test rows",
         "at most 5 %", "Near-duplicates are counted once in the control."),
    Gate("shadow fidelity", "Are the shadow models as accurate as the network?", None, "not measured", "within 3 %",
         "No shadow models were trained."),
)  # fmt: skip
POWER = Power(
    "kernel", 0.8, 0.01, 14, 0.31, "This audit announces 14 or more fully memorized rows with probability 0.8.", ""
)
ANNEX = (
    AnnexLine("EDPB Opinion 28/2024, paragraph 46", "Personal data must not be extractable by means reasonably likely to be"
              " used.", "Attacks with outputs only; the worst record is listed.", "not supported"),
    AnnexLine("EDPB Opinion 28/2024, paragraph 55", "Resistance to attribute and membership inference, exfiltration,"
              " regurgitation, model inversion, reconstruction.", "Membership inference only.", "not run"),
    AnnexLine("OWASP AISVS 1.0, 11.2.5", "Accuracy of attribute and membership inference is not above random guessing.",
              "AUC 0.641 (0.612 to 0.669); the margin is 0.55.", "supported"),
)  # fmt: skip


@cache
def build(variant: str) -> tuple[AuditDocument, RowTable]:
    """Return document and row table of a variant."""
    retrained = variant not in ("kernel", "features", "bare", "no-claim", "nothing")
    known = variant not in ("nothing", "bare", "features", "redacted")
    n_classes = 130 if variant == "long" else 10
    data = sample(n_classes, 0.15 if variant != "nothing" else 0.0)
    table = data.table if retrained else kernel_table(data.table)
    if variant == "nothing":
        table = replace(table, flagged=np.zeros(N, bool))
    names = tuple(f"{NAMES[c % 10]} of family {c // 10}" for c in range(n_classes)) if n_classes > 10 else NAMES
    rows = findings(data, table, retrained, known)
    shown = sorted({row.index for row in rows} | {other.index for row in rows for other in row.influential})
    document = AuditDocument(
        schema_version=SCHEMA_VERSION,
        context=Context("2026-11-26", "Jane Doe, Example Ltd", "release of the model to customers",
                        "An attacker sees the output probabilities for inputs of his choice.", False, True),
        verdict=Verdict(
            "memorized",
            f"This network memorized an estimated {how_much(table, retrained).fraction.value:.1%} of its training rows",
            "On rows that the network never saw, the same rule counts 1.0 %; p < .001.",
            ("It describes this network and these training rows, not other seeds of the same training.",
             "Rows with near-duplicates support each other, so their memorization is underestimated."),
        ),
        data=DataIdentity("digits", N, M, n_classes, names, (), (1, 8, 8), (8, 8), "3f0c9a77" * 8,
                          Duplicates(3, 1, 2, 0.98, 9, 4, 5)),
        model=ModelIdentity("mlp 64-128-10", 9610, 1.0, 0.9125, "b1946ac9" * 8,
                            ("0: Linear(64, 128)", "1: ReLU()", "2: Linear(128, 10)"), "Adam, learning rate 0.02, seed 0"),
        gates=GATES,
        power=replace(POWER, method="retraining", budget="2 minutes paid for 64 models; 256 models would halve the smallest"
                      " effect.") if retrained else POWER,
        how_much=how_much(table, retrained),
        rows=rows,
        suspected=suspected(data, table, known),
        leak=leak(table, retrained),
        compression=COMPRESSION.get(variant, ESTIMATED),
        slices=slices(table, names, ("young", "old", "unknown")),
        agreements=(Agreement("kernel leave-one-out score", 0.86, 0.91, 0.96), Agreement("own margin", 0.71, None, 0.96))
        if retrained else (),
        fidelity=KernelFidelity(0.965, 0.009, 0.9, 0.214, 0.931, 0.918, 0.915, 1e-2, 1e-4, 0.0312, 0.0148),
        flips=flips(data) if known else Flips(),
        annex=ANNEX,
        not_tested=("Extraction of training rows from the network.", "Memorization that only other seeds would show."),
        images={str(i): png_data_uri(data.x[i], (8, 8), low=0, high=16) for i in shown},
        features={},
        files={"rows.npz": "0f" * 32, "rows.csv": "1e" * 32},
        reproduce='km.audit(model, (x_train, y_train), (x_test, y_test), out="report", seed=0)',
        seed=0,
        versions={"kernelmem": "0.2.0", "torch": "2.13.0", "numpy": "2.3.1", "python": "3.11.9"},
        seconds=3.42,
    )  # fmt: skip
    return changed(variant, document), table


def changed(variant: str, document: AuditDocument) -> AuditDocument:
    """Return the document with what is particular to the variant."""
    if variant == "nothing":
        return replace(
            document,
            verdict=replace(document.verdict, status="nothing-found", headline="No memorization found"),
            how_much=replace(document.how_much, p_value=0.41, n_flagged=0, fraction=clopper_pearson(3, N)),
            leak=replace(document.leak, equivalent=None, equivalence="Not tested: the attack has too few rows."),
        )
    if variant == "no-claim":
        failed = replace(
            GATES[1], passed=False, value="61.0 % ± 2.4 %", meaning="The regression describes another function."
        )
        return replace(
            document,
            verdict=replace(document.verdict, status="no-claim", headline="No claim: a validity gate failed",
                            detail="Surrogate fidelity is 61.0 %; at least 90 % is required."),
            gates=(GATES[0], failed, *GATES[2:]),
            fidelity=replace(document.fidelity, agreement=0.61),
        )  # fmt: skip
    if variant == "features":
        values = np.random.default_rng(5).lognormal(1, 2, (N, 20)) * np.array([1, -1] * 10)
        names = ("income", "age", "a feature with a rather long name that a spreadsheet once had", *"abcdefghijklmnopq")
        return replace(
            document,
            data=replace(document.data, name="credit", input_shape=(20,), image_shape=None, feature_names=names),
            images={},
            features={index: tuple(values[int(index)].tolist()) for index in document.images},
        )
    if variant == "redacted":
        hidden = {"label": None, "predicted_without": None}
        return replace(
            document,
            context=replace(document.context, redacted=True, rows_shown=False),
            rows=tuple(
                replace(row, **hidden, influential=tuple(replace(other, label=None) for other in row.influential))
                for row in document.rows
            ),
            suspected=replace(
                document.suspected,
                rows=tuple(replace(row, label=None, suggested=None) for row in document.suspected.rows),
            ),
            leak=replace(document.leak, worst=tuple(replace(row, label=None) for row in document.leak.worst)),
            images={},
        )
    if variant == "hostile":
        return hostile(document)
    if variant == "bare":  # nothing that may be absent is there
        return replace(
            document, rows=(), images={}, seed=None, slices=document.slices[:1], annex=(), not_tested=(), files={},
            context=replace(document.context, auditor="", purpose="", rows_shown=False), gates=(),
            verdict=replace(document.verdict, limits=()), suspected=SuspectedLabels(0, 0, None, None, "", ()),
            leak=Leak((), (), "", "", None, ()),
        )  # fmt: skip
    return document


def hostile(document: AuditDocument) -> AuditDocument:
    """Return the document with markup, quotes and long words in every text."""
    names = tuple(HOSTILE + "x" * 60 if c % 2 else '" onload="' for c in range(10))
    return replace(
        document,
        context=Context(HOSTILE, HOSTILE, HOSTILE, HOSTILE * 5, False, True),
        data=replace(document.data, name=HOSTILE, class_names=names),
        model=replace(document.model, name=HOSTILE, layers=(HOSTILE,) * 90, training=HOSTILE),
        verdict=replace(document.verdict, headline=HOSTILE, detail=HOSTILE, limits=(HOSTILE,)),
        gates=(Gate(HOSTILE, HOSTILE, False, HOSTILE, HOSTILE, HOSTILE), *GATES),
        how_much=replace(document.how_much, definition=HOSTILE, control_definition=HOSTILE),
        power=replace(document.power, meaning=HOSTILE, budget=HOSTILE),
        slices=tuple(replace(row, name=name) for row, name in zip(document.slices, names, strict=False)),
        annex=(AnnexLine(HOSTILE, HOSTILE, HOSTILE, "not run"),),
        not_tested=(HOSTILE,),
        reproduce=HOSTILE * 9,
        files={HOSTILE: "0f" * 32},
        versions={HOSTILE: HOSTILE},
    )
