"""kernelmem.core.memory: limits of the machine and of control groups, in a stand-in of /proc and /sys."""

import pytest

from kernelmem.core.errors import InputError
from kernelmem.core.memory import UNKNOWN, available_memory, check_available_memory

MIB = 2**20


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_system_that_does_not_tell_is_unlimited(tmp_path):
    assert available_memory(tmp_path) == UNKNOWN
    assert available_memory(write(tmp_path, {"proc/meminfo": "junk\n", "proc/self/cgroup": "junk\n"})) == UNKNOWN


def test_memory_of_the_machine(tmp_path):
    assert available_memory(write(tmp_path, {"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:  1024 kB\n"})) == MIB
    assert available_memory() > 0


@pytest.mark.parametrize("version", [1, 2])
def test_the_smallest_limit_of_nested_groups_counts_and_cached_files_are_free(tmp_path, version):
    base = "sys/fs/cgroup" if version == 2 else "sys/fs/cgroup/memory"
    limit, used = (
        ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    )
    files = {
        "proc/meminfo": "MemAvailable: 1048576 kB\n",
        "proc/self/cgroup": "0::/job/step\n" if version == 2 else "5:cpu,memory:/job/step\n4:pids:/other\n",
        f"{base}/job/step/{limit}": "max\n" if version == 2 else f"{2**63 - 4096}\n",
        f"{base}/job/step/{used}": f"{10 * MIB}\n",
        f"{base}/job/{limit}": f"{100 * MIB}\n",
        f"{base}/job/{used}": f"{60 * MIB}\n",
        f"{base}/job/memory.stat": f"anon 5\ninactive_file {7 * MIB}\nactive_file {3 * MIB}\n",
    }
    assert available_memory(write(tmp_path, files)) == 50 * MIB
    write(tmp_path, {f"{base}/job/{used}": f"{200 * MIB}\n"})
    assert available_memory(tmp_path) == 0


def test_what_exceeds_it_is_refused_with_both_numbers(monkeypatch):
    monkeypatch.setattr("kernelmem.core.memory.available_memory", lambda: 3 * MIB)
    check_available_memory(3 * MIB, "a kernel", "wait")
    with pytest.raises(InputError, match=r"a kernel that needs about 4 MiB, where 3 MiB are available.*Hint: wait"):
        check_available_memory(4 * MIB, "a kernel", "wait")
