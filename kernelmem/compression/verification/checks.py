"""Checks that run in this process: each calls the predictor with other labels or inputs and compares rows."""

import numpy as np
import torch
from torch import Tensor, nn

from kernelmem.compression.verification.calls import PredictorCalls, unknown_after
from kernelmem.compression.verification.result import Check

RANDOM_DRAWS = 32
MISSED_BITS = 15.0  # random labels are this much shorter than uniform with probability 2**-15 at most
FUTURE_DRAWS = 4
LONGEST_OVERHEAD = 48.0  # bits of a stream, with the byte of the shift, above those of its frequencies
EXPLAIN_CAUSAL = (
    "a prediction changes with its own or later labels, which a decoder does not have. Typical causes: a model or kernel"
    " trained on all labels, leave-one-out predictions, a temperature or model chosen after all labels were seen"
)
EXPLAIN_MASS = (
    "probabilities of a row must be >= 0 and sum to 1 over all classes. The larger of two predictions, or"
    " a score of the true label only, is no distribution; mix predictions instead of taking the maximum"
)

SINGLE_PRECISION = 1e-5  # of sums of float32 probabilities
EXPLAIN_ROUNDING = (
    "the sums are off by the rounding of float32. Return float32, whose sums are checked to 1e-05, or divide in float64 by"
    " the sum of the row"
)


def is_distribution(P: np.ndarray, tolerance: float) -> bool:
    """Return whether all rows are non-negative and sum to 1."""
    return bool((P >= 0).all() and np.abs(P.sum(1) - 1).max() <= tolerance)


def bits_of(P: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return −log₂ of the probabilities of the labels, (n,); infinite for a label of probability 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return -np.log2(P[np.arange(len(y)), y])


def check_alphabet(P: np.ndarray, y: np.ndarray, tolerance: float) -> Check:
    """All probabilities of all rows are positive and sum to 1."""
    excess, smallest = P.sum(1) - 1, P.min()
    worst = excess[np.abs(excess).argmax()]
    measured = f"largest |sum - 1| {abs(worst):.1e}, smallest p {smallest:.1e}"
    expected = f"sums to {tolerance:g}, every p > 0"
    if not is_distribution(P, tolerance):
        is_rounded = is_distribution(P, SINGLE_PRECISION)
        return Check("alphabet", "failed", measured, expected, EXPLAIN_ROUNDING if is_rounded else EXPLAIN_MASS)
    if smallest == 0 and P.shape[1] > 1:
        n_rows, n_labels = int((P == 0).any(1).sum()), int((P[np.arange(len(y)), y] == 0).sum())
        return Check(
            "alphabet",
            "failed",
            measured,
            expected,
            f"{n_rows} rows give some class the probability 0, and {n_labels} labels have it: they have no code. "
            "Mix with the uniform distribution: (1 - f) p + f / C",
        )
    return Check("alphabet", "passed", measured, expected)


def check_repeats(calls: PredictorCalls, P: np.ndarray, y: np.ndarray) -> Check:
    """A second call returns the same rows."""
    change = float(np.abs(calls.predict(y, n_classes=P.shape[1]) - P).max())
    return Check(
        "repeats",
        "passed" if change <= calls.rounding else "failed",
        f"largest change {change:.1e}",
        f"at most {calls.rounding:g}",
        ""
        if change <= calls.rounding
        else "two calls with equal arguments differ, so that no decoder can repeat the encoder's"
        " predictions. Fix the seed inside the call, and switch dropout off",
    )


def check_causal(
    calls: PredictorCalls, P: np.ndarray, y: np.ndarray, positions: np.ndarray, rng: np.random.Generator
) -> Check:
    """Rows up to t do not change if the labels from t on are replaced (by others, or as a decoder has them)."""
    n, C = P.shape
    largest, place = 0.0, -1
    for k, t in enumerate(positions):
        others = unknown_after(y, t, C)
        if k % 2 == 0:
            others[t:] = (y[t:] + rng.integers(1, max(C, 2), n - t)) % C
        change = np.abs(calls.predict(others, n_classes=C) - P)[: t + 1].max(1)
        if change.max() > largest:
            largest, place = float(change.max()), int(change.argmax())
    failed = largest > calls.rounding
    return Check(
        "causal",
        "failed" if failed else "passed",
        f"largest change {largest:.1e} at {len(positions)} positions" + f" (row {place})" * failed,
        f"at most {calls.rounding:g}",
        EXPLAIN_CAUSAL if failed else "",
    )


def check_random_labels(calls: PredictorCalls, y: np.ndarray, C: int, draws: int, rng: np.random.Generator) -> Check:
    """Labels drawn at random are not shorter than uniform, but by chance; nor are ``y``, if the predictor is given those."""
    uniform = len(y) * np.log2(C)
    shortest = known = np.inf
    for _ in range(draws):
        drawn = rng.integers(0, C, len(y))
        P = calls.predict(drawn, n_classes=C)
        shortest = min(shortest, bits_of(P, drawn).sum() - uniform)
        known = min(known, uniform - bits_of(P, y).sum())
    measured, expected = (
        f"shortest of {draws} draws: uniform {shortest:+.1f} bits",
        f"at least uniform - {MISSED_BITS:g}",
    )
    if not shortest >= -MISSED_BITS:
        explanation = (
            "labels without structure are compressed, as no code can: predictions use the labels that they predict"
        )
        return Check("random labels", "failed", measured, expected, explanation)
    if known > MISSED_BITS:
        explanation = (
            f"with random labels instead of these for the rows before, predictions still save {known:,.0f} bits of these labels:"
            " the predictor knows them from elsewhere. That is right if it was trained on other data; if it has read these"
            " labels, from a file, from x or from one of its values, its length is not that of a code"
        )
        return Check("random labels", "note", measured, expected, explanation)
    return Check("random labels", "passed", measured, expected)


def check_future_inputs(
    calls: PredictorCalls, P: np.ndarray, y: np.ndarray, rng: np.random.Generator
) -> tuple[Check, bool]:
    """Say if rows up to t change with the inputs of later rows; also return it."""
    n, C = P.shape
    largest = 0.0
    places = np.unique(np.linspace(n // 4, n - 2, FUTURE_DRAWS).astype(int)) if n > 2 else np.empty(0, int)
    for t in places:
        rows = np.r_[np.arange(t + 1), rng.integers(0, t + 1, n - t - 1)]
        x = calls.x[torch.from_numpy(rows)] if isinstance(calls.x, Tensor) else calls.x[rows]
        largest = max(largest, float(np.abs(calls.predict(y, x, C) - P)[: t + 1].max()))
    used = largest > 1e3 * calls.rounding
    return Check(
        "future inputs",
        "note" if used else "passed",
        f"largest change {largest:.1e}: " + ("used" if used else "not used"),
        "reported only",
        "predictions use inputs (not labels) of later rows. A decoder that has all inputs before the first label can decode;"
        " one that receives rows one after the other cannot"
        if used
        else "",
    ), used


def check_alone(calls: PredictorCalls, P: np.ndarray, y: np.ndarray, rows: np.ndarray, later_inputs: bool) -> Check:
    """Rows predicted one after the other equal those of one call, and no batch statistics of later rows are in them."""
    expected = f"at most {calls.rounding:g}, no batch statistics"
    change = float(np.abs(rows - P).max())
    measured = f"largest change {change:.1e}" if calls.has_sequential else "no method `sequential`"
    if change > calls.rounding:
        return Check(
            "alone = in batch",
            "failed",
            measured,
            expected,
            "rows yielded by `sequential` differ from the same rows of one call, so that a stream encoded with one is not"
            " decoded by the other. Use the same arithmetic in both, and models in eval mode",
        )
    if later_inputs and (layers := _training_mode_layers(calls, y)):
        return Check(
            "alone = in batch",
            "failed",
            f"{layers} predicts in training mode",
            expected,
            "a prediction depends on which rows are in the batch with it. Call model.eval() before predicting",
        )
    return Check("alone = in batch", "passed", measured, expected)


def check_claim(claimed: float | None, ideal: float, stream: float, rounding_bits: float) -> Check:
    """The stream has the length of the predictions, and the length that the user reports is one of the two."""
    overhead = stream - ideal
    measured = f"stream - ideal = {overhead:.1f} bits"
    if claimed is None:
        if not np.isfinite(overhead):
            return Check("once", "not run", f"ideal {ideal:,.1f} bits", "", "there is no stream, or no ideal length")
        ok = 0 <= overhead - rounding_bits <= LONGEST_OVERHEAD
        expected = f"0 to {LONGEST_OVERHEAD:g}, and {rounding_bits:.1f} by rounding"
        return Check("once", "passed" if ok else "failed", measured, expected)
    off = min(abs(claimed - ideal), abs(claimed - stream) if np.isfinite(stream) else np.inf)
    agrees = off <= 1 + 1e-6 * abs(claimed)
    return Check(
        "once",
        "passed" if agrees else "failed",
        f"claimed {claimed:,.1f}, ideal {ideal:,.1f}, stream {stream:,.0f} bits",
        "claimed = ideal or stream, to 1 bit",
        ""
        if agrees
        else "the reported length is not that of these labels under this predictor. Typical causes: rows that are left out or"
        " scored twice, lengths divided by another count, labels other than those that are decoded",
    )


def _training_mode_layers(calls: PredictorCalls, y: np.ndarray) -> str:
    """Return the class of a layer that predicted (without gradients) in training mode in a call, or ""."""
    names: list[str] = []

    def watch(module: nn.Module, _: object) -> None:
        is_random = isinstance(module, nn.modules.batchnorm._BatchNorm | nn.modules.dropout._DropoutNd)
        if module.training and is_random and not torch.is_grad_enabled():
            names.append(type(module).__name__)

    handle = nn.modules.module.register_module_forward_pre_hook(watch)
    try:
        calls.predict(y)
    finally:
        handle.remove()
    return names[0] if names else ""
