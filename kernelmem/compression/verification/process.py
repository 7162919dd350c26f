"""Process of the decoder, as seen from the process that encodes."""

import contextlib
import os
import pickle
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import torch

from kernelmem.compression.verification.calls import PredictorError

COMMAND = "from kernelmem.compression.verification.worker import main; main()"
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


class DecoderProcess:
    """A fresh Python process with another number of threads and another seed of hashes than this one.

    It does not import the user's script, so that a script without ``if __name__ == "__main__"`` can verify too.

    Raises:
        PredictorError: Python could not be started.
    """

    def __init__(self) -> None:
        self.threads = 2 if torch.get_num_threads() == 1 else 1
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONHASHSEED"}
        environment |= dict.fromkeys(THREAD_VARIABLES, str(self.threads))
        environment["KERNELMEM_DECODER_THREADS"] = str(self.threads)
        environment |= {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}  # threads that spin stop on a busy machine
        environment["PYTHONPATH"] = os.pathsep.join(os.path.abspath(folder) for folder in sys.path)  # noqa: PTH100
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115 (closed by __exit__)
        command = [sys.executable, "-c", COMMAND]
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._messages, env=environment)
        except (OSError, ValueError) as error:
            self._messages.close()
            raise PredictorError(f"has no other process: {sys.executable!r} did not start ({error})") from error
        self._answers: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def ask(self, request: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """Return the answer to one request.

        Raises:
            PredictorError: the predictor failed there, the process ended, or it did not answer in time.
        """
        assert self._process.stdin is not None
        try:
            pickle.dump(dict(request), self._process.stdin)
            self._process.stdin.flush()
            answer = self._answers.get(timeout=timeout)
        except queue.Empty:
            raise PredictorError(f"did not return within {timeout:g} s in the fresh process") from None
        except OSError:  # the process has ended
            answer = None
        if answer is None:
            raise PredictorError(f"ended the fresh process (code {self._process.wait()}){self._last_message()}")
        if answer["error"]:
            raise PredictorError(f"{answer['error']} (in the fresh process)")
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._messages):
            if file is not None:
                with contextlib.suppress(OSError):  # what was not sent yet
                    file.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            while True:
                self._answers.put(pickle.load(self._process.stdout))
        except (EOFError, OSError, ValueError, pickle.UnpicklingError):
            self._answers.put(None)

    def _last_message(self) -> str:
        self._messages.seek(0)
        lines = self._messages.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1][:200]}" if lines else ""
