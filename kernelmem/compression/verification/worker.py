"""Decoder in a process of its own: has the stream, the inputs and the pickled predictor, but not the labels."""

import os
import pickle
import sys
import time
from typing import Any

import numpy as np
import torch

from kernelmem.compression.coder import SymbolDecoder, frequencies
from kernelmem.compression.verification.calls import PredictorCalls, PredictorError, as_rows, copied, unknown_after
from kernelmem.core import FileCorruptError


def main() -> None:
    """Answer pickled requests on the standard input until it ends, one pickled answer each on the standard output."""
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # what a predictor prints must not be among the answers
        torch.set_num_threads(int(os.environ["KERNELMEM_DECODER_THREADS"]))
        calls: PredictorCalls | None = None
        while True:
            try:
                request = pickle.load(sys.stdin.buffer)
            except EOFError:
                return
            try:
                if "predictor" in request:
                    calls = PredictorCalls(
                        None, request["predictor"], request["x"], request["as_tensors"], request["timeout"]
                    )
                    answer = decode(calls, request["stream"], request["shape"], request["shift"], request["seconds"])
                else:
                    assert calls is not None
                    answer = predict_positions(calls, request["labels"], request["positions"], request["n_classes"])
            except PredictorError as error:
                answer = {"error": str(error)}
            except Exception as error:  # of any type: it cannot be loaded here, or its generator failed
                answer = {"error": f"raised {type(error).__name__}: {' '.join(str(error).split())[:200]}"}
            pickle.dump(answer, answers)
            answers.flush()


def decode(
    calls: PredictorCalls, stream: bytes, shape: tuple[int, int], shift: float, seconds: float
) -> dict[str, Any]:
    """Decode the labels, one after the other; without ``sequential`` those for which the time suffices.

    Returns the labels, the probabilities that they were decoded with, and a description of the damage of the stream.
    """
    n, n_classes = shape
    decoder = SymbolDecoder(stream)
    labels, rows = unknown_after(np.zeros(n, np.int64), 0, n_classes), np.zeros(shape)
    started, decoded, damage = time.monotonic(), 0, ""
    generator = calls.copy().sequential(copied(calls.x)) if calls.has_sequential else None
    try:
        while decoded < n and (generator is not None or not decoded or time.monotonic() - started < seconds):
            if generator is None:
                rows[decoded] = calls.predict(labels, n_classes=n_classes)[decoded]
            else:
                row = next(generator) if not decoded else generator.send(int(labels[decoded - 1]))
                rows[decoded] = as_rows(row)[0]
            labels[decoded] = decoder.decode(frequencies(rows[None, decoded], shift)[0])
            decoded += 1
        if decoded == n:
            decoder.close()
    except FileCorruptError as error:
        damage = error.given
        decoded += decoded < n  # the probabilities that did not decode
    return {"labels": labels[:decoded], "rows": rows[:decoded], "damage": damage, "error": ""}


def predict_positions(calls: PredictorCalls, y: np.ndarray, positions: np.ndarray, n_classes: int) -> dict[str, Any]:
    """Return the predictions of some rows, each from the labels before it, for as many as the time allows."""
    rows: list[np.ndarray] = []
    started = time.monotonic()
    for t in positions:
        if rows and time.monotonic() - started > calls.timeout:
            break
        rows.append(calls.predict(unknown_after(y, t, n_classes))[t])
    return {"rows": np.array(rows), "error": ""}
