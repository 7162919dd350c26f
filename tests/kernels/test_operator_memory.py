"""kernelmem.kernels.operator: peak memory, each measured in a process of its own."""

import subprocess
import sys

import pytest

PEAK = """
import resource, sys
import torch
from torch import nn
from kernelmem.kernels.operator import ntk_operator
torch.set_num_threads(1)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

width, n, memory, outputs = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
warm = ntk_operator(nn.Linear(2, 2), torch.eye(2))  # what the first call imports is not the operator's
warm @ torch.ones(2), warm.diagonal()
model = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
x = torch.randn(n, width)
ballast = torch.ones(2**26)  # the high-water mark must stand at what is resident now
del ballast
before = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
open("/proc/self/clear_refs", "w").write("5")  # resets the high-water mark
op = ntk_operator(model, x, memory=memory, outputs=outputs)
op @ torch.ones(op.shape[0])
if "diagonal" in sys.argv:
    op.diagonal()
high = [int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")][0]
print(high - before, op._plan.rows_per_chunk, op._plan.directions_per_pass, op._plan.keep_graphs)
"""


@pytest.mark.soak
@pytest.mark.skipif(sys.platform != "linux", reason="reads the high-water mark from /proc")
@pytest.mark.parametrize(
    ("width", "n", "memory"), [(1600, 64, 2**28), (1600, 4096, 2**28), (256, 40_000, 2**26), (1600, 64, 2**27)]
)
@pytest.mark.parametrize("outputs", ["trace", "full"])
def test_peak_stays_under_the_limit_in_a_fresh_process(width, n, memory, outputs):
    arguments = [sys.executable, "-c", PEAK, str(width), str(n), str(memory), outputs]
    # 16 MiB for code pages and thread stacks, which the limit does not speak of
    peak = int(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.split()[0])
    assert peak <= 1.1 * memory + 2**24, f"{peak / 2**20:.0f} MiB of {memory / 2**20:.0f}"
