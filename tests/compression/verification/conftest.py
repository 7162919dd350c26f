"""One process of a decoder for all tests: it takes seconds to start."""

import pytest

from kernelmem.compression.verification import decoding
from kernelmem.compression.verification.process import DecoderProcess


class Shared:
    """The process of the session, started at first use and again when a test has ended it."""

    process = None

    def __call__(self):
        if Shared.process is None:
            Shared.process = DecoderProcess()
        return self

    def __enter__(self):
        return Shared.process

    def __exit__(self, *_):
        pass


@pytest.fixture(scope="session")
def shared_process():
    yield Shared()
    if Shared.process is not None:
        Shared.process.__exit__(None, None, None)
        Shared.process = None


@pytest.fixture
def quick(shared_process, monkeypatch):
    """Decode in the shared process."""
    monkeypatch.setattr(decoding, "DecoderProcess", shared_process)
