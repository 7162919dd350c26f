"""Read ``audit.json`` back, checked against the dataclasses that it was written from."""

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any

from kernelmem.auditing.document import SCHEMA_VERSION, AuditDocument
from kernelmem.core.errors import FileCorruptError, InputError

__all__ = ["read_document"]


def read_document(path: Path) -> AuditDocument:
    """Read ``audit.json``.

    Raises:
        InputError: no such file, or another schema version.
        FileCorruptError: not JSON, or fields missing or of the wrong type (the field is named).
    """
    if not path.is_file():
        raise InputError(f"audit file {path}", expected="an existing audit.json", hint="check the path")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["schema_version"]
        if version == SCHEMA_VERSION:
            return _build(AuditDocument, content, "audit")
    except (ValueError, KeyError, TypeError) as error:
        raise FileCorruptError(
            f"audit file {path} ({error})",
            expected="an audit.json written by kernelmem",
            hint="run the audit again",
        ) from error
    raise InputError(
        f"audit file {path} of schema version {version!r}",
        expected=f"version {SCHEMA_VERSION}",
        hint="run the audit again, or read the file with the kernelmem version recorded in it under versions",
    )


def _build(kind: Any, value: object, where: str) -> Any:
    """Convert a JSON value to the annotated type ``kind``; ``where`` names the field in errors."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints, fields = typing.get_type_hints(kind), _typed(value, dict, where)
        return kind(
            **{f.name: _build(hints[f.name], fields[f.name], f"{where}.{f.name}") for f in dataclasses.fields(kind)}
        )
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _build(next(a for a in arguments if a is not type(None)), value, where)
    if origin is tuple:
        return tuple(_build(arguments[0], item, where) for item in _typed(value, list, where))
    if origin is dict:
        return {key: _build(arguments[1], item, where) for key, item in _typed(value, dict, where).items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return _typed(value, kind, where)


def _typed(value: object, kind: type, where: str) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{where} is {type(value).__name__}, not {kind.__name__}")
    return value
