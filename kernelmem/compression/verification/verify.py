"""Verify that a predictor of labels gives a code: a stream that another process decodes, and a length that is paid."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from kernelmem.compression.coder import encode_symbols, frequencies, margin, stream_bits
from kernelmem.compression.verification import checks
from kernelmem.compression.verification.calls import PredictorCalls, PredictorError
from kernelmem.compression.verification.carrying import pickled
from kernelmem.compression.verification.process import DecoderProcess
from kernelmem.compression.verification.result import Check, Verification
from kernelmem.core import ArrayLike, InputError
from kernelmem.core.checks import as_array, as_count, as_labels, as_number, as_seed, as_tensor, check_callable

SHIFTS = 256  # of the rounding of probabilities; the one that was taken costs a byte
SAFE_MARGIN = 1e-6
FREE_BITS = 2048  # of numbers and texts, such as options, that a predictor may bring along
SHARE_OF_CHECKS = 0.5  # of the time, for calls in this process
START_SECONDS = 60.0  # for the start of a process, on a busy machine
FEWEST = 4  # positions and draws, however slow the predictor is


def verify_code(
    predictor: Callable[[Any, Any], Any],
    x: ArrayLike,
    y: ArrayLike,
    *,
    positions: int = 64,
    seed: int = 0,
    n_classes: int | None = None,
    claimed: float | None = None,
    timeout: float = 120.0,
) -> Verification:
    """Verify that ``predictor(x, y)`` is a code of the labels y: −Σ log₂ p(yᵢ) bits that a decoder can turn into labels.

    A row i of the probabilities (n, C) may depend on all inputs and on the labels before it, ``y[:i]``: a decoder that has
    decoded those computes the row, and decodes yᵢ. It fills labels that it does not know yet with 0. Whatever depends on
    labels (training, choices) must happen inside the call. An optional method ``predictor.sequential(x)`` is a generator
    that yields one row (C,) after the other and receives the label of each by ``send``; it makes decoding fast.

    The checks: *decodes* (a fresh process with another number of threads gets the labels back from stream, inputs and
    pickled predictor alone), *alphabet* (probabilities of all classes), *repeats* (equal calls, equal rows), *causal*
    (labels from t on are replaced: rows up to t stay), *alone = in batch*, *once* (the length counts every label once),
    *random labels* (are not compressed), *carries* (the values of the predictor have no more bits than it saves, or than
    2,048, so that it does not bring more labels along than those would hold) and *future inputs* (reported only).

    Args:
        predictor: function or object; it is copied by pickling, so that nothing is kept from one call to the next. Functions
            of scripts and notebooks can be pickled too.
        x: (n, ...) inputs, passed to the predictor as they are: tensor or array.
        y: (n,) labels, passed as int64 tensor if they are a tensor, else as array.
        positions: number of positions t at which labels are replaced; fewer if the calls take too long.
        seed: seed of positions and random labels.
        n_classes: number of classes C; None: the number of columns of the predictions.
        claimed: length in bits that was reported for these labels; checked against the one that is measured.
        timeout: seconds for the calls here, and again for those of the fresh process. A call that does not return within
            this time fails; calls are reduced in number to stay within it.

    Cost: about ``positions`` + 40 calls here, and in the fresh process one pass of ``sequential``, or one call per
    label for a quarter of the time (the rest of the labels is then checked at ``positions`` positions).

    Raises:
        InputError: not a function of (x, y), no inputs or labels, or options out of range. A predictor that fails does not
            raise: it is reported.

    >>> def frequent(x, y):  # Laplace's rule: (count + 1) / (i + C)
    ...     before = np.cumsum(np.eye(2)[y], axis=0) - np.eye(2)[y]
    ...     return (before + 1) / (np.arange(len(y))[:, None] + 2)
    >>> y = np.random.default_rng(0).random(100) < 0.1
    >>> verify_code(frequent, np.zeros((100, 1)), y).ok  # doctest: +SKIP
    True
    """
    check_callable(predictor, "predictor", ("x", "y"), modules=True)
    inputs = as_tensor(x, "x").cpu() if isinstance(x, Tensor) else np.array(as_tensor(as_array(x, "x"), "x").numpy())
    labels = as_labels(y, "y", n_classes=None if n_classes is None else as_count(n_classes, "n_classes")).cpu().numpy()
    if inputs.ndim == 0 or len(inputs) != len(labels) or not len(labels):
        raise InputError(
            f"x of shape {tuple(inputs.shape)} and {len(labels)} labels y",
            expected="at least one row of inputs, and one label per row",
            hint="pass x of shape (n, ...) and y of shape (n,)",
        )
    positions, seed = as_count(positions, "positions"), as_seed(seed)
    claimed = None if claimed is None else as_number(claimed, "claimed")
    timeout = as_number(timeout, "timeout", maximum=1e6, exclusive=True)
    try:
        data, carried = pickled(predictor)
        reason = ""
    except InputError as error:
        data, carried, reason = None, 0, error.given
    calls = PredictorCalls(predictor, data, inputs, isinstance(y, Tensor), timeout)
    try:
        P = calls.predict(labels, n_classes=n_classes)
        if P.shape[1] <= labels.max():
            raise PredictorError(f"returned {P.shape[1]} columns for labels up to {labels.max()}")
    except PredictorError as error:
        failure = Check("predicts", "failed", "no probabilities", "(n, C) finite numbers", f"the predictor {error}")
        C = n_classes or int(labels.max()) + 1
        return Verification((failure,), len(labels), C, len(labels) * math.log2(C), math.nan, math.nan, 0, carried)
    return _verify(calls, P, labels, positions, np.random.default_rng(seed), claimed, (carried, reason))


def _verify(
    calls: PredictorCalls,
    P: np.ndarray,
    y: np.ndarray,
    positions: int,
    rng: np.random.Generator,
    claimed: float | None,
    pickling: tuple[int, str],
) -> Verification:
    """Run all checks of a predictor whose first call returned P (n, C)."""
    n, C = P.shape
    uniform = n * math.log2(C)
    results: list[Check] = [checks.check_alphabet(P, y, calls.rounding)]
    is_distribution = bool((P >= 0).all() and np.abs(P.sum(1) - 1).max() <= calls.rounding)
    ideal = float(-np.log2(P[np.arange(n), y]).sum()) if is_distribution and P[np.arange(n), y].all() else math.nan
    results.append(_run("repeats", lambda: checks.check_repeats(calls, P, y)))
    affordable = SHARE_OF_CHECKS * calls.timeout / max(calls.seconds, 1e-9)
    share = min(1.0, affordable / (positions + checks.RANDOM_DRAWS + checks.FUTURE_DRAWS + 2))
    places = np.sort(rng.choice(n, max(min(FEWEST, n), min(n, int(share * positions))), replace=False))
    draws = max(FEWEST, int(share * checks.RANDOM_DRAWS))
    sequential, later_inputs = None, [False]

    def future() -> Check:
        check, later_inputs[0] = checks.check_future_inputs(calls, P, y, rng)
        return check

    results.append(_run("causal", lambda: checks.check_causal(calls, P, y, places, rng)))
    results.append(_run("random labels", lambda: checks.check_random_labels(calls, C, n, draws, rng)))
    future_check = _run("future inputs", future)
    try:
        sequential = calls.predict_sequential(y, C) if calls.has_sequential else None
        results.append(_run("alone = in batch", lambda: checks.check_alone(calls, P, y, sequential, later_inputs[0])))
    except PredictorError as error:
        results.append(_failure("alone = in batch", error))
    stream, decoded = math.nan, 0
    rows = P if sequential is None else sequential
    if pickling[1]:
        decodes = Check(
            "decodes", "not run", "", "all labels", f"{pickling[1]}; there is no other process to decode it in"
        )
    elif not is_distribution or (calls.has_sequential and sequential is None):
        decodes = Check("decodes", "not run", "", "all labels", "there are no probabilities to encode with")
    else:
        shift, table = _rounded(rows)
        data = encode_symbols(y, table)
        stream = stream_bits(len(data), n) + 8.0  # and the shift
        decodes, decoded = decode_elsewhere(calls, rows, y, data, shift, places)
    results.insert(0, decodes)
    results.append(checks.check_claim(claimed, ideal, stream, n))
    results.append(_check_carries(pickling, uniform - ideal))
    results.append(future_check)
    return Verification(tuple(results), n, C, uniform, ideal, stream, decoded, pickling[0])


def decode_elsewhere(
    calls: PredictorCalls, P: np.ndarray, y: np.ndarray, stream: bytes, shift: float, positions: np.ndarray
) -> tuple[Check, int]:
    """Decode the stream in a fresh process; return the check, and the number of labels that were decoded literally."""
    try:
        with DecoderProcess() as process:
            return decode_in(process, calls, P, y, stream, shift, positions)
    except PredictorError as error:
        return _failure("decodes", error), 0


def decode_in(
    process: DecoderProcess,
    calls: PredictorCalls,
    P: np.ndarray,
    y: np.ndarray,
    stream: bytes,
    shift: float,
    positions: np.ndarray,
) -> tuple[Check, int]:
    """Decode in a process that was started; see :func:`decode_elsewhere`.

    Raises:
        PredictorError: the predictor or the process failed.
    """
    n, C = P.shape
    request = {"predictor": calls.data, "x": calls.x, "as_tensors": calls.as_tensors, "stream": stream, "n": n}
    request |= {"n_classes": C, "shift": shift, "timeout": calls.timeout / 4}
    answer = process.ask(request, START_SECONDS + calls.timeout)
    labels, rows = answer["labels"], answer["rows"]
    wrong = np.flatnonzero(labels != y[: len(labels)])
    threads = f"{process.threads} thread{'s' * (process.threads > 1)}"
    expected = f"all labels, in a fresh process with {threads}"
    right = int(wrong[0]) if len(wrong) else len(labels)
    if len(wrong) or answer["damage"]:
        change = float(np.abs(rows - P[: len(rows)])[: right + 1].max()) if len(rows) else math.nan
        return Check(
            "decodes",
            "failed",
            f"{right:,} of {n:,} labels",
            expected,
            f"the fresh process decoded {right:,} labels and then others: its probabilities differ by up to {change:.1e}."
            " Typical causes: sums that depend on the number of threads, seeds, order of sets, labels used in the call",
        ), right
    if right == n:
        return Check("decodes", "passed", f"{n:,} of {n:,} labels", expected), n
    places = positions[positions >= right]
    answer = process.ask({"labels": y, "positions": places, "n_classes": C}, START_SECONDS + calls.timeout)
    rows = answer["rows"]
    places = places[: len(rows)]
    same = bool((frequencies(rows, shift) == frequencies(P[places], shift)).all()) if len(rows) else True
    measured = f"{right:,} of {n:,} labels, {len(rows)} later rows predicted"
    if same:
        return Check(
            "decodes", "passed", measured, expected, "decoding all would take longer than the time limit"
        ), right
    change = np.abs(rows - P[places]).max()
    return Check(
        "decodes", "failed", measured, expected, f"rows predicted in the fresh process differ by up to {change:.1e}"
    ), right


def _rounded(P: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the first shift for which no probability is near an edge of the rounding, and the frequencies."""
    shifts = [k / SHIFTS for k in range(SHIFTS)]
    shift = next((s for s in shifts if margin(P, s) > SAFE_MARGIN), None)
    shift = max(shifts, key=lambda s: margin(P, s)) if shift is None else shift
    return shift, frequencies(P, shift)


def _check_carries(pickling: tuple[int, str], saved: float) -> Check:
    carried, reason = pickling
    if reason:
        return Check("carries", "not run", "", "", "the predictor cannot be pickled, so that its size is not known")
    allowed = max(FREE_BITS, 0.0 if math.isnan(saved) else saved)
    failed = carried > allowed
    return Check(
        "carries",
        "failed" if failed else "passed",
        f"{carried:,} bits of values; saves {saved:,.0f} bits",
        f"at most {allowed:,.0f} bits",
        "the predictor brings more along than it saves: arrays may hold the labels (a kernel of a network trained on them"
        " does). Compute them inside the call, pass what is known beforehand in x, or import it from an installed package"
        if failed
        else "",
    )


def _run(name: str, check: Callable[[], Check]) -> Check:
    """Return the result of a check, which fails if the predictor does."""
    try:
        return check()
    except PredictorError as error:
        return _failure(name, error)


def _failure(name: str, error: PredictorError) -> Check:
    return Check(name, "failed", "no probabilities", "as in the first call", f"the predictor {error}")
