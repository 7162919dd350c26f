"""kernelmem.core.options: sizes as users write them, and the functions that report progress."""

import io
import subprocess
import sys

import pytest

from kernelmem.core import options
from kernelmem.core.errors import InputError
from kernelmem.core.options import as_bytes, as_progress


@pytest.mark.parametrize(
    ("text", "size"), [("1B", 1), ("2 KB", 2000), ("1.5KiB", 1536), ("4gib", 2**32), (12, 12), ("3TiB", 3 * 2**40)]
)
def test_sizes_are_read(text, size):
    assert as_bytes(text) == size


@pytest.mark.parametrize("wrong", ["", "GiB", "-1GB", "1XB", 0, -5, float("nan"), float("inf"), "nan"])
def test_what_is_not_a_size_is_refused(wrong):
    with pytest.raises(InputError, match="memory="):
        as_bytes(wrong)


def test_a_function_is_called_as_it_is():
    calls = []
    report = as_progress(lambda *done: calls.append(done), "label")
    report(1, 2)
    report(2, 2)
    assert calls == [(1, 2), (2, 2)]


@pytest.mark.parametrize("progress", [None, False])
def test_nothing_is_printed_without_a_terminal(progress, capfd):
    report = as_progress(progress, "label")
    for done in range(4):
        report(done, 3)
    assert capfd.readouterr() == ("", "")


def test_true_shows_a_labelled_bar_with_the_whole_count(capfd):
    report = as_progress(True, "kernel", "tile")
    for done in range(4):
        report(done, 3)
    shown = capfd.readouterr().err
    assert "kernel" in shown
    assert "tile" in shown
    assert "3" in shown


@pytest.mark.parametrize(("progress", "shown"), [(None, True), (False, False)])
def test_a_terminal_shows_a_bar_unless_progress_is_false(progress, shown, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(options, "BAR_DELAY", 0.0)
    report = as_progress(progress, "kernel", "tile")
    for done in range(4):
        report(done, 3)
    assert ("kernel" in sys.stderr.getvalue()) is shown


def test_a_bar_shows_that_work_goes_on_and_a_function_is_told_of_finished_units_only(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(options.time, "monotonic", lambda: clock[0])
    bar = options.as_progress(True, "sweep", "network")
    bar(0, 5)
    capsys.readouterr()
    options.refresh_progress(bar, 2, 5)  # too soon
    assert capsys.readouterr().err == ""
    clock[0] += 1.5
    options.refresh_progress(bar, 2, 5)
    assert "2/5" in capsys.readouterr().err
    clock[0] += 1.5
    options.refresh_progress(bar, 5, 5)  # unfinished: the bar stays open
    assert "4/5" in capsys.readouterr().err
    bar(5, 5)
    assert bar.bar is None
    calls = []
    options.refresh_progress(lambda *call: calls.append(call), 1, 5)
    assert calls == []


def test_a_notebook_without_ipywidgets_shows_a_bar_of_text_without_a_warning():
    notebook = """
import sys, types
from unittest.mock import Mock
sys.modules["IPython"] = types.SimpleNamespace(get_ipython=lambda: Mock(config={"IPKernelApp": 1}))
sys.modules["IPython.display"] = sys.modules["IPython.html"] = sys.modules["ipywidgets"] = None
from kernelmem.core.options import as_progress
report = as_progress(True, "kernel")
report(1, 2), report(2, 2)
"""
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", notebook], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert "kernel" in finished.stderr
    assert "IProgress" not in finished.stderr
