"""Files of a report: those of one audit only, also after a kill at any time."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import kernelmem as km
from kernelmem.auditing import AuditOptions
from kernelmem.auditing.result import Audit, write_report
from kernelmem.auditing.schema import ROWS_CSV, ROWS_NPZ, read_document
from kernelmem.core.errors import FileCorruptError, InputError
from kernelmem.core.files import file_system
from kernelmem.core.files.atomic_files import check_directory, file_sha256
from tests.auditing.sample_documents import build


@pytest.fixture
def make_result(tmp_path, monkeypatch):
    """Return a function (name, files) -> (audit of that name with the hashes of its files, files); drawing is skipped."""
    monkeypatch.setattr("kernelmem.auditing.report.render_page", lambda document, _: f"report of {document.data.name}")

    def make(name, *file_names):
        files = {file_name: f"{file_name} of {name}".encode() for file_name in file_names}
        document, rows = build("bare")
        rows = replace(rows, score=rows.score + len(name))  # the rows of another audit differ
        hashes = {}
        for file_name, content in {**rows.files(), **files}.items():
            (tmp_path / "scratch").write_bytes(content)
            hashes[file_name] = file_sha256(tmp_path / "scratch")
        return Audit(replace(document, data=replace(document.data, name=name), files=hashes), rows), files

    return make


def check_one_report(directory: Path) -> str | None:
    """Check that no file in ``directory`` belongs to another report than audit.json; return its name."""
    try:
        document = read_document(directory / "audit.json")
    except InputError:
        document = None
    for file in directory.iterdir():
        if not file.name.startswith(".") and file.name not in ("audit.json", "audit.html", "mine.txt"):
            assert document
            assert file_sha256(file) == document.files[file.name], file
    name = document.data.name if document else None
    if (directory / "audit.html").exists():
        assert (directory / "audit.html").read_text() == f"report of {name}"
        assert Audit.load(directory).document.data.name == name
    return name


def test_a_kill_at_any_time_leaves_the_files_of_one_report(make_result, tmp_path, monkeypatch):
    states = tmp_path / "states"
    directory = tmp_path / "out"

    def snapshot(function):
        def wrapped(*arguments, **options):
            shutil.copytree(directory, states / str(len(list(states.iterdir()))))
            return function(*arguments, **options)

        return wrapped

    old = make_result("old", "weights.safetensors", "labels.npz")
    for new in (make_result("new", "weights.safetensors"), make_result("new", "labels.npz", "weights.safetensors")):
        for leftover in (directory, states):
            shutil.rmtree(leftover, ignore_errors=True)
            leftover.mkdir()
        (directory / "mine.txt").write_text("mine")
        write_report(old[0], directory, old[1])
        with monkeypatch.context() as patched:
            for owner, name in ((Path, "replace"), (Path, "unlink"), (file_system.os, "fsync")):
                patched.setattr(owner, name, snapshot(getattr(owner, name)))
            write_report(new[0], directory, new[1], overwrite=True)
        names = [check_one_report(state) for state in sorted(states.iterdir(), key=lambda path: int(path.name))]
        assert len(names) >= 10
        assert names == sorted(names, reverse=True)  # "old" until one rename, "new" after it
        assert set(names) == {"old", "new"}
        assert check_one_report(directory) == "new"
        assert {path.name for path in directory.iterdir()} == {
            "mine.txt", "audit.json", "audit.html", ROWS_NPZ, ROWS_CSV, *new[1],
        }  # fmt: skip
        # The state after any kill is no obstacle to the next audit
        for state in sorted(states.iterdir())[::4]:
            write_report(new[0], state, new[1], overwrite=True)
            assert check_one_report(state) == "new"


def test_a_file_of_another_report_is_refused_and_a_missing_one_is_not(make_result, tmp_path):
    result, files = make_result("a", "weights.safetensors")
    write_report(result, tmp_path, files)
    (tmp_path / "weights.safetensors").write_text("weights of another network")
    with pytest.raises(FileCorruptError, match=r"weights\.safetensors"):
        Audit.load(tmp_path)
    (tmp_path / "weights.safetensors").unlink()
    assert Audit.load(tmp_path).document == result.document


def test_files_of_the_user_stay(make_result, tmp_path):
    result, files = make_result("a", "labels.npz")
    write_report(result, tmp_path, files)
    (tmp_path / "labels.npz").write_text("edited")
    (tmp_path / "weights.safetensors").write_text("mine")
    write_report(make_result("b")[0], tmp_path, {}, overwrite=True)
    assert (tmp_path / "labels.npz").read_text() == "edited"
    assert (tmp_path / "weights.safetensors").read_text() == "mine"


def test_an_error_while_drawing_names_the_numbers(make_result, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no fonts")

    result, files = make_result("a", "labels.npz")
    monkeypatch.setattr("kernelmem.auditing.report.render_page", fail)
    with pytest.raises(RuntimeError, match="no fonts") as failure:
        write_report(result, tmp_path / "o", files)
    assert "audit.json" in failure.value.__notes__[0]
    assert km.Audit.load(tmp_path / "o").document == result.document


@pytest.mark.parametrize("name", ["audit.json", "audit.html", "rows.npz", "rows.csv", "../up", "a/b", "", ".."])
def test_names_of_further_files_are_names(name):
    with pytest.raises(InputError, match=r"extra.file"):
        AuditOptions(extra_files={name: b""})


def test_a_directory_where_no_file_can_be_created_is_refused_before_the_work(tmp_path, monkeypatch):
    def read_only(**_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(file_system.tempfile, "TemporaryFile", read_only)
    with pytest.raises(InputError, match="Read-only file system"):
        check_directory(tmp_path / "new")


def test_an_older_report_is_replaced_only_if_asked(make_result, tmp_path):
    old, new = make_result("a"), make_result("bb")
    old[0].save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(InputError, match=r"audit\.json and audit\.html of an older report"):
        new[0].save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    new[0].save(tmp_path, overwrite=True)
    assert Audit.load(tmp_path).document.data.name == "bb"


def test_rows_are_required_and_must_be_those_of_the_document(make_result, tmp_path):
    result, _ = make_result("a")
    result.save(tmp_path)
    content = (tmp_path / ROWS_NPZ).read_bytes()
    for change in (b"", content[:-40], make_result("other")[0].rows.files()[ROWS_NPZ]):
        (tmp_path / ROWS_NPZ).write_bytes(change)
        with pytest.raises(FileCorruptError, match=r"rows\.npz"):
            Audit.load(tmp_path)
    (tmp_path / ROWS_NPZ).unlink()
    with pytest.raises(FileCorruptError, match=r"rows\.npz"):
        Audit.load(tmp_path)
