"""Commands that are interrupted: what they say is true, and no process outlives them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kernelmem.cli import main
from kernelmem.cli.descent import DescentCommand, _kept_files

SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from kernelmem.cli.worker_pool import worker_pool

def work(path):
    Path(path).write_text(str(os.getpid()))
    time.sleep(100)

def send(path):
    Path(path).write_text(str(os.getpid()))
    return bytes(2**22)  # takes longer to send than to make

def run(directory, function):
    with worker_pool(2) as executor:
        k = 0
        while True:
            for task in [executor.submit(function, f"{directory}/{k + i}") for i in range(8)]:
                task.result()
            k += 8

if __name__ == "__main__":
    import pool_script
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs with SIGINT ignored
    pool_script.run(sys.argv[1], getattr(pool_script, sys.argv[2]))
"""


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("killed_by", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("task", ["work", "send"])
def test_no_worker_outlives_its_parent(tmp_path, killed_by, task):
    """In "send" the workers are stopped in the middle of a message, whose rest the parent must not wait for."""
    (tmp_path / "pool_script.py").write_text(SCRIPT)
    directory = tmp_path / "started"
    directory.mkdir()
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "pool_script.py"), str(directory), task],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        stderr=subprocess.PIPE,
        start_new_session=True,
    )

    def wait_until(condition):
        deadline = time.monotonic() + 90
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def worker_ids():
        return {int(text) for file in directory.iterdir() if (text := file.read_text())}

    wait_until(lambda: len(worker_ids()) == 2 or process.poll() is not None)
    workers = worker_ids()
    assert len(workers) == 2
    process.send_signal(killed_by)  # to the parent alone, as `kill` does
    process.communicate(timeout=90)  # well before the tasks end
    wait_until(lambda: not any(map(is_alive, workers)))


def test_ctrl_c_and_sigterm_tell_what_is_kept(tmp_path, capsys, monkeypatch):
    def interrupt(directory):
        raise KeyboardInterrupt

    def terminate(directory):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    chunks = tmp_path / "model" / "chunks"
    before = signal.getsignal(signal.SIGTERM)
    for stop, code in ((interrupt, 130), (terminate, 143)):
        monkeypatch.setattr(
            DescentCommand, "_run_kinds", lambda self, kinds, directory, workers, stop=stop: stop(directory)
        )
        assert main(["descent", "--out", str(tmp_path)]) == code
        assert "no networks were finished" in capsys.readouterr().err
        chunks.mkdir(parents=True)
        (chunks / "a.safetensors").touch()
        assert main(["descent", "--out", str(tmp_path)]) == code
        message = capsys.readouterr().err
        assert f"kept in {chunks} (1 files)" in message
        assert "resumes" in message
        assert "not written" not in message
        (chunks / "a.safetensors").unlink()
        chunks.rmdir()
    assert signal.getsignal(signal.SIGTERM) == before


def test_files_of_several_kinds_are_counted(tmp_path):
    assert "nothing is kept" in _kept_files(tmp_path / "absent")
    for kind in ("model", "sample"):
        (tmp_path / kind / "chunks").mkdir(parents=True)
        (tmp_path / kind / "chunks" / "a.safetensors").touch()
    assert "(2 files)" in _kept_files(tmp_path)
