"""Verify that a predictor of labels gives a code: a stream that another process decodes, and a length that is paid."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch import Tensor

from kernelmem.compression.verification import checks
from kernelmem.compression.verification.calls import PredictorCalls, PredictorError
from kernelmem.compression.verification.carrying import pickled
from kernelmem.compression.verification.decoding import Decoding, decode_elsewhere
from kernelmem.compression.verification.result import Check, Verification
from kernelmem.core import ArrayLike, InputError
from kernelmem.core.checks import as_array, as_count, as_labels, as_number, as_seed, as_tensor, check_callable
from kernelmem.core.options import Progress, as_progress

FREE_BITS = 2048  # of numbers and texts, such as options, that a predictor may bring along
SHARE_OF_CHECKS = 0.5  # of the time, for calls in this process
FEWEST = 4  # positions and draws, however slow the predictor is
N_CHECKS = 9


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
    progress: Progress = None,
) -> Verification:
    """Verify that ``predictor(x, y)`` is a code of the labels y: −Σ log₂ p(yᵢ) bits that a decoder can turn into labels.

    A row i of the probabilities (n, C) may depend on all inputs and on the labels before it, ``y[:i]``: a decoder that has
    decoded those computes the row, and decodes yᵢ. It fills the labels that it does not know yet with 0, 1, ..., C−1 in
    turn. Whatever depends on labels (training, choices) must happen inside the call. An optional method
    ``predictor.sequential(x)`` is a generator that yields one row (C,) after the other and receives the label of each by
    ``send``; it makes decoding fast.

    The checks: *decodes* (a fresh process with another number of threads gets the labels back from stream, inputs and
    pickled predictor alone), *alphabet* (probabilities of all classes), *repeats* (equal calls, equal rows), *causal*
    (labels from t on are replaced: rows up to t stay), *alone = in batch*, *once* (the length counts every label once),
    *random labels* (are not compressed; it is noted if a predictor that is given them still predicts the labels y, which it
    then knows from elsewhere), *carries* (the values of the predictor have no more bits than it saves, or than
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
        timeout: seconds after which a call is given up. The calls here are reduced in number to take half of it, and
            those that decode label after label to take a quarter, but there are at least about 20 calls.
        progress: called with (checks done, 9).

    Cost: about ``positions`` + 40 calls here, and in the fresh process one pass of ``sequential``, or one call per
    label (labels for which the time does not suffice are checked at ``positions`` positions instead).

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
    report = as_progress(progress, "verification", "check")
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
        report(N_CHECKS, N_CHECKS)
        return Verification((failure,), len(labels), C, len(labels) * math.log2(C), math.nan, math.nan, 0, carried)
    rows = calls.rows(P, labels)
    uniform = len(labels) * math.log2(P.shape[1])
    found: list[Check] = []
    for check in _checks_here(calls, P, rows, labels, positions, np.random.default_rng(seed)):
        found.append(check)
        report(len(found), N_CHECKS)
    *found, future = found
    is_code = checks.is_distribution(P, calls.rounding)
    ideal = float(checks.bits_of(P, labels).sum()) if is_code else math.nan
    decoding = Decoding(Check("decodes", "not run", "", "all labels", "there are no probabilities to encode with"))
    if reason:
        explanation = f"{reason}; there is no other process to decode it in"
        decoding = Decoding(Check("decodes", "not run", "", "all labels", explanation))
    elif isinstance(rows, np.ndarray) and checks.is_distribution(rows, calls.rounding):
        decoding = decode_elsewhere(calls, rows, labels, positions, np.random.default_rng(seed))
    report(N_CHECKS - 1, N_CHECKS)
    found = [decoding.check, *found, checks.check_claim(claimed, ideal, decoding.stream, decoding.rounding_bits)]
    found += [_check_carries(carried, reason, uniform - ideal), future]
    report(N_CHECKS, N_CHECKS)
    return Verification(
        tuple(found), len(labels), P.shape[1], uniform, ideal, decoding.stream, decoding.n_decoded, carried
    )


def _checks_here(
    calls: PredictorCalls,
    P: np.ndarray,
    rows: np.ndarray | PredictorError,
    y: np.ndarray,
    positions: int,
    rng: np.random.Generator,
) -> Iterator[Check]:
    """Yield the checks that need no other process, that of future inputs last; P (n, C) is what the first call returned."""
    n, C = P.shape
    later_inputs = False

    def check_future() -> Check:
        nonlocal later_inputs
        check, later_inputs = checks.check_future_inputs(calls, P, y, rng)
        return check

    yield checks.check_alphabet(P, y, calls.rounding)
    yield _run("repeats", lambda: checks.check_repeats(calls, P, y))
    affordable = SHARE_OF_CHECKS * calls.timeout / max(calls.seconds, 1e-9)
    share = min(1.0, affordable / (positions + checks.RANDOM_DRAWS + checks.FUTURE_DRAWS + 2))
    n_places = min(n, max(FEWEST, int(share * positions)))
    places = np.sort(rng.choice(n, n_places, replace=False))
    yield _run("causal", lambda: checks.check_causal(calls, P, y, places, rng))
    draws = max(FEWEST, int(share * checks.RANDOM_DRAWS))
    yield _run("random labels", lambda: checks.check_random_labels(calls, y, C, draws, rng))
    future = _run("future inputs", check_future)
    if isinstance(rows, PredictorError):
        yield _failure("alone = in batch", rows)
    else:
        yield _run("alone = in batch", lambda: checks.check_alone(calls, P, y, rows, later_inputs))
    yield future


def _check_carries(carried: int, reason: str, saved: float) -> Check:
    """The values of the predictor have no more bits than it saves."""
    if reason:
        return Check("carries", "not run", "", "", "the predictor cannot be pickled, so that its size is not known")
    saved = 0.0 if math.isnan(saved) else saved
    measured = f"{carried:,} bits of values; saves {saved:,.0f} bits"
    expected = f"at most {max(FREE_BITS, saved):,.0f} bits"
    if carried > max(FREE_BITS, saved):
        explanation = (
            "the predictor brings more along than it saves: arrays may hold the labels (a kernel of a network trained on"
            " them does). Compute them inside the call, pass what is known beforehand in x, or import it from an installed"
            " package"
        )
        return Check("carries", "failed", measured, expected, explanation)
    if carried > saved > 0:
        explanation = (
            "the predictor brings more along than it saves, though little enough to be options. If any of it was chosen"
            " after the labels were seen, the code does not pay for that"
        )
        return Check("carries", "note", measured, expected, explanation)
    return Check("carries", "passed", measured, expected)


def _run(name: str, check: Callable[[], Check]) -> Check:
    """Return the result of a check, which fails if the predictor does."""
    try:
        return check()
    except PredictorError as error:
        return _failure(name, error)


def _failure(name: str, error: PredictorError) -> Check:
    return Check(name, "failed", "no probabilities", "as in the first call", f"the predictor {error}")
