"""Directory of a shadow ensemble: its identity in JSON, and one file per finished chunk of models."""

import re
from pathlib import Path

from torch import Tensor

from kernelmem.core.errors import FileCorruptError
from kernelmem.core.files.atomic_files import check_directory, write_file
from kernelmem.core.files.hashed_files import READ_ERRORS, check_json, hashed_json, load_json, read_bytes, reason
from kernelmem.core.files.result_files import read_result, write_result
from kernelmem.memorization.shadows.identity import check_same_identity, record_sha256

IDENTITY_FILE = "shadows.json"
FORMAT = "shadow ensemble 1"
CHUNK_FORMAT = "shadow models 1"
CHUNK_NAME = re.compile(r"models-(\d{7})-(\d{7})\.safetensors")


class ShadowDirectory:
    """Finished chunks of one ensemble; each file is whole or absent, so that a killed run resumes."""

    def __init__(self, path: str | Path, record: dict[str, str], probe: list[float]) -> None:
        """Open or create the directory of the ensemble with the identity ``record`` and initial outputs ``probe``.

        Raises:
            InputError: the directory holds models of other data or of another training, or cannot be written to.
            FileCorruptError: its identity file is damaged.
        """
        self.path = check_directory(path)
        self.key = record_sha256(record)
        file = self.path / IDENTITY_FILE
        if file.exists():
            stored, stored_probe = _read_identity(file)
            check_same_identity(stored, stored_probe, record, probe, str(self.path))
        else:
            write_file(file, hashed_json({"format": FORMAT, "identity": record, "initial_outputs": probe}))

    def finished(self) -> list[tuple[int, int]]:
        """Return the ranges (start, stop) of models that have a file, in order and without overlaps."""
        matches = [CHUNK_NAME.fullmatch(file.name) for file in self.path.iterdir()]
        ranges = sorted((int(match[1]), -int(match[2])) for match in matches if match is not None)
        result: list[tuple[int, int]] = []
        for start, negative_stop in ranges:
            if start >= (result[-1][1] if result else 0) and -negative_stop > start:
                result.append((start, -negative_stop))
        return result

    def read(self, start: int, stop: int, n_rows: int) -> Tensor | None:
        """Return the outputs (stop - start, n_rows, C) of a finished chunk, or None if its file is damaged."""
        try:
            with read_result(self._file(start, stop), CHUNK_FORMAT) as (tensors, values):
                outputs = tensors["outputs"]
                is_valid = tuple(outputs.shape[:2]) == (stop - start, n_rows) and outputs.ndim == 3
                return outputs if is_valid and values["key"] == self.key else None
        except FileCorruptError:
            return None

    def write(self, start: int, stop: int, outputs: Tensor) -> None:
        """Write the outputs of a finished chunk; an interrupted write leaves no partial file."""
        write_result(self._file(start, stop), CHUNK_FORMAT, {"outputs": outputs}, {"key": self.key})

    def _file(self, start: int, stop: int) -> Path:
        return self.path / f"models-{start:07d}-{stop:07d}.safetensors"


def _read_identity(file: Path) -> tuple[dict[str, str], list[float]]:
    """Return the record and the initial outputs in an identity file."""
    try:
        values = check_json(load_json(read_bytes(file), finite=True))
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']}"[:100])
        record = {str(name): str(value) for name, value in values["identity"].items()}
        return record, [float(value) for value in values["initial_outputs"]]
    except (*READ_ERRORS, AttributeError) as error:
        raise FileCorruptError(
            f"file {file} ({reason(error)})",
            expected="the identity of a shadow ensemble, written by km.shadow_ensemble",
            hint="pass another path",
        ) from error
