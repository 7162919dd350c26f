"""Header of a store: format, layout, facts and notes, as rows of its SQLite file."""

import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from kernelmem.core.errors import InputError, KernelmemError
from kernelmem.core.files.hashed_files import JSON, load_json
from kernelmem.core.files.result_files import decode
from kernelmem.kernels.store.database import FORMAT, PAGE_SIZE, SCHEMA
from kernelmem.kernels.store.layout import DTYPES, Layout, as_facts, differences, facts_hash, notes_hash


def empty_database(layout: Layout, facts: Mapping[str, JSON], notes: Mapping[str, JSON]) -> bytes:
    """Return the content of the file of a store without tiles."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size={PAGE_SIZE}")
        connection.executescript(SCHEMA)
        header = {
            "format": FORMAT,
            "layout": layout.facts(),
            "sha256": facts_hash(layout, facts),
            "notes_sha256": notes_hash(notes),
        }
        for table, values in (("header", header), ("facts", facts), ("notes", notes)):
            rows = [(key, json.dumps(value, sort_keys=True)) for key, value in values.items()]
            connection.executemany(f"INSERT INTO {table} VALUES (?, ?)", rows)
        return connection.serialize()


def read_header(connection: sqlite3.Connection, file: Path) -> tuple[Layout, dict[str, JSON], dict[str, JSON], str]:
    """Return the layout, facts and notes of a store and the hash of layout and facts, after checking it."""
    header, facts, notes = (
        {key: load_json(value) for key, value in connection.execute(f"SELECT key, value FROM {table}").fetchmany(10**5)}
        for table in ("header", "facts", "notes")
    )
    file_format = decode(header["format"], int, "format")
    if file_format < 1:
        raise ValueError(f"format {file_format}")
    if file_format > FORMAT:
        raise InputError(
            f"{file} in format {file_format}", expected=f"format {FORMAT} at most", hint="upgrade kernelmem"
        )
    values = header["layout"]
    try:
        dtype = DTYPES[values["dtype"]]
        layout = Layout.checked(values["n"], values["m"], values["tile"], dtype, values["symmetric"])
        checked_facts, checked_notes = as_facts(facts), as_facts(notes)
    except KernelmemError as error:
        raise ValueError(str(error)) from error
    if header["sha256"] != facts_hash(layout, checked_facts) or header["notes_sha256"] != notes_hash(checked_notes):
        raise ValueError("its sha256 differs from the recorded one")
    return layout, checked_facts, checked_notes, header["sha256"]


def check_facts(file: Path, stored: Mapping[str, JSON], expected: Mapping[str, JSON]) -> None:
    """Check that the facts of a store are the expected ones.

    Raises:
        InputError: they differ; the message says in what.
    """
    changes = differences(stored, expected)
    if changes:
        raise InputError(
            f"{file}, the kernel of other inputs: {'; '.join(changes[:8])}{'; ...' * (len(changes) > 8)}",
            expected="the inputs of which the store was made",
            hint="pass the same model, rows in the same order and options, or another path",
        )
