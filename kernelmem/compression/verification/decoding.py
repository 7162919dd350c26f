"""Encode labels by the predictions of this process, and decode them by those of a fresh one."""

from dataclasses import dataclass, replace

import numpy as np

from kernelmem.compression.coder import best_shift, encode_symbols, frequencies, ideal_bits, stream_bits
from kernelmem.compression.verification.calls import PredictorCalls, PredictorError
from kernelmem.compression.verification.checks import bits_of
from kernelmem.compression.verification.process import DecoderProcess
from kernelmem.compression.verification.result import Check

SHIFTS = 256  # of the rounding of probabilities; the one that was taken costs a byte
START_SECONDS = 60.0  # for the start of a process, on a busy machine
UNKNOWN = ". It fills the labels that it does not know yet with 0, 1, ..., C - 1 in turn"
SHARE_OF_DECODING = 0.25  # of the time, for labels that are decoded by one call each


@dataclass(frozen=True)
class Decoding:
    """Outcome of a decoding.

    Attributes:
        check: the check.
        n_decoded: labels that were decoded one after the other.
        stream: bits of the stream and of the shift.
        rounding_bits: bits of the labels by the integer frequencies minus those by the probabilities.
    """

    check: Check
    n_decoded: int = 0
    stream: float = np.nan
    rounding_bits: float = 0.0


def decode_elsewhere(
    calls: PredictorCalls, P: np.ndarray, y: np.ndarray, positions: int, rng: np.random.Generator
) -> Decoding:
    """Encode y by the predictions P (n, C), and decode in a fresh process."""
    n, C = P.shape
    shift = best_shift(P, SHIFTS)[0] / SHIFTS
    table = frequencies(P, shift)
    stream = encode_symbols(y, table)
    encoded = Decoding(
        Check("decodes", "not run", "", ""),
        stream=stream_bits(len(stream), n) + 8.0,
        rounding_bits=float(ideal_bits(y, table).sum() - bits_of(P, y).sum()),
    )
    expected = "all labels, in a fresh process"
    request = {"predictor": calls.data, "x": calls.x, "as_tensors": calls.as_tensors, "stream": stream, "shape": (n, C)}
    request |= {"shift": shift, "timeout": calls.timeout, "seconds": SHARE_OF_DECODING * calls.timeout}
    try:
        with DecoderProcess() as process:
            expected += f" with {process.threads} thread" + "s" * (process.threads > 1)
            answer = process.ask(request, START_SECONDS + 2 * calls.timeout)
            labels, rows = answer["labels"], answer["rows"]
            wrong = np.flatnonzero(labels != y[: len(labels)])
            right = int(wrong[0]) if len(wrong) else len(labels)
            measured = f"{right:,} of {n:,} labels"
            if len(wrong) or answer["damage"]:
                check = Check("decodes", "failed", measured, expected, _difference(rows, P, right, answer["damage"]))
                return replace(encoded, check=check, n_decoded=right)
            if right == n:
                return replace(encoded, check=Check("decodes", "passed", measured, expected), n_decoded=n)
            places = np.sort(rng.choice(np.arange(right, n), min(positions, n - right), replace=False))
            answer = process.ask({"labels": y, "positions": places, "n_classes": C}, START_SECONDS + 2 * calls.timeout)
    except PredictorError as error:
        return replace(encoded, check=Check("decodes", "failed", "", expected, f"the predictor {error}{UNKNOWN}"))
    rows, places = answer["rows"], places[: len(answer["rows"])]
    measured += f", {len(rows)} later rows"
    same = bool((frequencies(rows, shift) == frequencies(P[places], shift)).all())
    explanation = f"rows predicted in the fresh process differ by up to {np.abs(rows - P[places]).max():.1e}"
    if same:
        explanation = (
            f"the time sufficed to decode {right:,} labels one after the other; of the later rows, {len(rows)} were"
            " predicted there and are the same. Pass a longer timeout, or give the predictor a method `sequential`"
        )
    return replace(
        encoded,
        check=Check("decodes", "passed" if same else "failed", measured, expected, explanation),
        n_decoded=right,
    )


def _difference(rows: np.ndarray, P: np.ndarray, right: int, damage: str) -> str:
    """Explain a decoding that went wrong after ``right`` labels."""
    change = np.abs(rows - P[: len(rows)])[: right + 1]
    amount = f", where probabilities differ by up to {change.max():.1e}" if change.size else f" ({damage})"
    return (
        f"the fresh process decoded {right:,} labels, and then not the right one{amount}. Typical causes: labels used in the"
        " call that a decoder does not have, sums that depend on the number of threads, seeds, the order of sets"
    )
