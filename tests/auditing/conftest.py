"""Synthetic audit documents, one for each variant of the report: digits and kernel ridge regression in a few lines."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.metrics.pairwise import rbf_kernel

from kernelmem.auditing.document import (
    SCHEMA_VERSION,
    AuditDocument,
    ClassRow,
    DataIdentity,
    Example,
    Flips,
    InfluentialRow,
    KernelFidelity,
    Memorization,
    ModelIdentity,
    Verdict,
)
from kernelmem.auditing.report import render
from kernelmem.auditing.report.thumbnails import png_data_uri

VARIANTS = ("flips", "nothing", "no-claim", "rows", "many-classes", "hostile", "bare")
HOSTILE = '<script>alert("1")</script>'
LIMITS = (
    "It speaks of this network and these training rows, not of the training algorithm or of other seeds.",
    "Nothing below 1.84 logits can be distinguished from chance with 400 test rows.",
    "A row that resembles many others can be memorized without a large statistic.",
)


def tuples(values) -> tuple:
    return tuple(np.asarray(values).tolist())


@cache
def audited(n_classes: int, rate: float) -> AuditDocument:
    """Kernel ridge on digits: leave-one-out in closed form; the "network" is the regression plus noise."""
    n, m, ridge = 600, 400, 0.3
    rng = np.random.default_rng(7)
    x, truth = load_digits(return_X_y=True)
    order = rng.permutation(len(x))[: n + m]
    x, truth = x[order], truth[order]
    if n_classes > 10:
        truth = truth + 10 * rng.integers(0, n_classes // 10, n + m)
    flipped = np.zeros(n, bool)
    flipped[rng.choice(n, round(rate * n), replace=False)] = True
    label = truth[:n].copy()
    label[flipped] = (label[flipped] + rng.integers(1, n_classes, flipped.sum())) % n_classes

    kernel = rbf_kernel(x, x[:n], gamma=0.0012)
    inverse = np.linalg.inv(kernel[:n] + ridge * np.eye(n))
    targets = np.eye(n_classes)[label] - 1 / n_classes
    dual = inverse @ targets
    leverage = 1 - ridge * inverse.diagonal()
    left_out = targets - dual / inverse.diagonal()[:, None]
    rows = np.arange(n)
    score = leverage * (targets - left_out)[rows, label]
    others = left_out.copy()
    others[rows, label] = -np.inf
    margin = left_out[rows, label] - others.max(1)
    vote = left_out.argmax(1)
    network = 7 * np.clip(score, 0, None) ** 2 + rng.normal(0.1, 0.6, n)
    null = rng.normal(0.02, 0.6, m)
    threshold = float(np.quantile(null, 0.99))
    order = np.argsort(-network)
    memorized = order[network[order] > threshold]

    examples = []
    for i in order[:12]:
        pair = np.zeros(n_classes)
        pair[label[i]] += 1
        pair[others[i].argmax()] -= 1
        influence = kernel[i] * (dual @ pair)
        influence[i] = 0
        top = np.argsort(-np.abs(influence))[:3]
        examples.append(
            Example(
                index=int(i),
                label=int(label[i]),
                loo_prediction=int(vote[i]),
                label_memorization=float(score[i]),
                loo_margin=float(margin[i]),
                network_memorization=float(network[i]),
                flipped=bool(flipped[i]) if rate else None,
                influential=tuple(InfluentialRow(int(j), int(label[j]), float(influence[j])) for j in top),
            )
        )
    shown = sorted({e.index for e in examples} | {p.index for e in examples for p in e.influential})
    guessed = (kernel[n:] @ dual).argmax(1)
    classes = tuple(
        ClassRow(
            label=c,
            name=str(c),
            n_train=int((label == c).sum()),
            n_test=int((truth[n:] == c).sum()),
            train_accuracy=1.0 if (label == c).any() else None,
            test_accuracy=float((guessed == c)[truth[n:] == c].mean()) if (truth[n:] == c).any() else None,
            mean_label_memorization=float(score[label == c].mean()) if (label == c).any() else None,
            n_memorized=int((label[memorized] == c).sum()),
            n_contradicted=int((vote != label)[label == c].sum()),
        )
        for c in range(n_classes)
    )
    return AuditDocument(
        schema_version=SCHEMA_VERSION,
        verdict=Verdict(
            "memorized",
            f"{len(memorized)} of {n} training rows are memorized",
            f"This network is surer of them than the rest of the data can explain; chance alone gives about"
            f" {0.0125 * n:.0f} such rows.",
            LIMITS,
        ),
        data=DataIdentity("digits", n, m, n_classes, (1, 8, 8), (8, 8), "3f0c9a77" * 8, 3, 1, 2),
        model=ModelIdentity(
            "mlp 64-128-10",
            9610,
            1.0,
            0.9125,
            "b1946ac9" * 8,
            ("0: Linear(64, 128)", "1: ReLU()", "2: Linear(128, 10)"),
            "Adam, learning rate 0.02, full batch, 300 steps, seed 0",
        ),
        fidelity=KernelFidelity(0.965, 0.009, 0.9, 0.214, 0.931, 0.918, 0.915, 1e-2, 1e-4, 0.0312, 0.0148),
        memorization=Memorization(
            label_memorization=tuples(score),
            loo_margin=tuples(margin),
            network_memorization=tuples(network),
            null=tuples(null),
            loo_prediction=tuples(vote),
            threshold=threshold,
            memorized=tuples(memorized),
            expected_by_chance=n * 5 / (m + 1),
            p_value=1e-12,
            n_null=len(null),
            null_mean=float(null.mean()),
            null_se=float(null.std(ddof=1) / m**0.5),
            null_sd=float(null.std(ddof=1)),
        ),
        flips=known_flips(flipped, margin) if rate else Flips(),
        examples=tuple(examples),
        classes=classes,
        images={str(i): png_data_uri(x[i], (8, 8), low=0, high=16) for i in shown},
        features={},
        files={},
        reproduce='km.audit(model, (x_train, y_train), (x_test, y_test), out="report", seed=0)',
        seed=0,
        versions={"kernelmem": "0.1.0", "torch": "2.13.0", "numpy": "2.3.1", "python": "3.11.9"},
        seconds=3.42,
    )


def known_flips(flipped: np.ndarray, margin: np.ndarray) -> Flips:
    hits = flipped[np.argsort(margin)].cumsum()
    ranks = np.arange(1, 2 * flipped.sum() + 1)
    return Flips(
        n=int(flipped.sum()),
        auroc=0.9983,
        auroc_se=0.0011,
        auroc_label_memorization=0.9921,
        auroc_network_memorization=0.9544,
        permuted_auroc=0.5012,
        permuted_sd=0.031,
        precision=tuples(hits[ranks - 1] / ranks),
        recall=tuples(hits[ranks - 1] / flipped.sum()),
        ranks=tuples(ranks),
    )


@cache
def build(variant: str) -> AuditDocument:
    """One document of every kind that the report must show well."""
    document = audited(130 if variant == "many-classes" else 10, 0.0 if variant in {"nothing", "bare"} else 0.15)
    if variant == "nothing":
        verdict = Verdict(
            "nothing-found",
            "No memorization found above 1.84 logits",
            "7 of 600 training rows lie above the 99th percentile of the null; chance alone gives about 7.5.",
            LIMITS,
        )
        numbers = replace(
            document.memorization, network_memorization=tuples(np.random.default_rng(3).normal(0.03, 0.6, 600))
        )
        above = [
            i
            for i in np.argsort(numbers.network_memorization)[::-1].tolist()
            if numbers.network_memorization[i] > numbers.threshold
        ]
        numbers = replace(numbers, memorized=tuple(above), p_value=0.41)
        classes = tuple(replace(c, n_memorized=0) for c in document.classes)
        return replace(document, verdict=verdict, memorization=numbers, classes=classes)
    if variant == "no-claim":
        verdict = Verdict(
            "no-claim",
            "No claim: the NTK surrogate does not approximate this network",
            "NTK surrogate and network agree on 61.0% of the test rows; 90% are required.",
            LIMITS,
        )
        return replace(
            document, verdict=verdict, fidelity=replace(document.fidelity, agreement=0.61, agreement_se=0.024)
        )
    if variant == "rows":
        features = np.random.default_rng(5).lognormal(1, 2, (600, 64)) * np.array([1, -1] * 32)
        features[:, 2:5] = np.round(features[:, 2:5])
        return replace(
            document,
            data=replace(document.data, name="credit", input_shape=(64,), image_shape=None),
            images={},
            features={index: tuples(features[int(index)]) for index in document.images},
        )
    if variant == "hostile":
        classes = tuple(replace(c, name=HOSTILE + "x" * 60 if c.label % 2 else '" onload="') for c in document.classes)
        return replace(
            document,
            classes=classes,
            data=replace(document.data, name=HOSTILE),
            model=replace(document.model, name=HOSTILE, layers=(HOSTILE,) * 90, training=HOSTILE),
            verdict=replace(document.verdict, headline=HOSTILE, detail=HOSTILE, limits=(HOSTILE,)),
            reproduce=HOSTILE * 9,
            versions={HOSTILE: HOSTILE},
        )
    if variant == "bare":  # nothing that may be absent is there
        return replace(
            document,
            examples=(),
            images={},
            seed=None,
            classes=(),
            verdict=replace(document.verdict, limits=()),
        )
    return document


@pytest.fixture(scope="session")
def make_document() -> Callable[[str], AuditDocument]:
    return build


@cache
def rendered(variant: str) -> str:
    return render(build(variant))


@pytest.fixture(scope="session")
def report() -> Callable[[str], str]:
    """The page of a variant, drawn once: drawing takes half a second, and no test may change it."""
    return rendered


@pytest.fixture(params=VARIANTS)
def variant(request) -> str:
    return request.param


@pytest.fixture
def document(variant) -> AuditDocument:
    return build(variant)
