"""Hostile files: nothing in them is executed, memory is bounded, and the error names the file."""

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.attacks import hostile_files

HARMLESS = {f"weights/{name} load_weights" for name in ("many.safetensors", "spaces.safetensors")}
"""They are what they say: many empty tensors, none at all."""

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    folder, mark = tmp_path_factory.mktemp("attacks"), tmp_path_factory.mktemp("marks") / "executed"
    contents = {
        "weights": hostile_files.weights(mark),
        "arrays": hostile_files.arrays(mark),
        "results": hostile_files.results(),
        "documents": hostile_files.documents(),
        "stores": {"pickle.sqlite": b"\x80\x02]."},
    }
    for kind, files in contents.items():
        (folder / kind).mkdir()
        for name, content in files.items():
            (folder / kind / name).write_bytes(content)
    connection = sqlite3.connect(folder / "stores" / "endless.sqlite")
    connection.executescript(
        "CREATE VIEW header AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i AS key, i AS value FROM n"
    )
    connection.close()
    ended = subprocess.run(
        [sys.executable, "-m", "tests.attacks.loader", str(folder)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "MALLOC_ARENA_MAX": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout), mark


def test_nothing_is_executed(attacked):
    assert not attacked[1].exists()


def test_payloads_would_be_executed_by_pickle(tmp_path):
    import pickle

    mark = tmp_path / "executed"
    pickle.loads(pickle.dumps(hostile_files.payloads(mark)["system"]))
    assert mark.exists()


def test_every_file_is_refused_by_name(attacked):
    report = attacked[0]
    assert len(report) > 45
    loaded = {name for name, entry in report.items() if entry["outcome"] == "loaded"}
    assert loaded == HARMLESS
    foreign = {name: entry for name, entry in report.items() if entry["outcome"] not in ("loaded", "refused")}
    assert foreign == {}
    refused = {name: entry for name, entry in report.items() if entry["outcome"] == "refused"}
    assert [name for name, entry in refused.items() if not entry["names"]] == []
    assert [name for name, entry in refused.items() if entry["length"] > 1500] == []
