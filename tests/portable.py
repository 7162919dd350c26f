"""Run the tests under several BLAS code paths and thread counts; print what passed and failed (``make test-portable``)."""

import os
import platform
import re
import subprocess
import sys

import torch

FOLDERS = ["tests/properties", "tests/kernels", "tests/kernel_machines"]


def settings() -> dict[str, dict[str, str]]:
    """Environment per setting: this processor's own code path, then those that it can emulate, oldest last.

    ``MKL_CBWR`` selects the code path of torch's matrix products and LAPACK, ``OPENBLAS_CORETYPE`` that of NumPy and
    SciPy, ``ATEN_CPU_CAPABILITY`` that of torch's sums and elementwise functions.
    """
    found = {"own": {}, "own, 2 threads": {"KERNELMEM_TEST_THREADS": "2", "OMP_NUM_THREADS": "2"}}
    capability = torch.backends.cpu.get_cpu_capability()
    if capability == "AVX512":
        found["AVX-512"] = _paths("AVX512", "avx512", "SkylakeX")
    if capability in ("AVX2", "AVX512"):
        found["AVX2"] = _paths("AVX2", "avx2", "Haswell")
        found["AVX2, Zen"] = _paths("AVX2", "avx2", "Zen")
    if capability in ("AVX2", "AVX512", "DEFAULT") and platform.machine() in ("x86_64", "AMD64"):
        found["SSE4.2"] = _paths("SSE4_2", "default", "Nehalem")
        found["SSE2"] = _paths("COMPATIBLE", "default", "Prescott")
        found["SSE2, 2 threads"] = found["SSE2"] | found["own, 2 threads"]
    return found


def _paths(mkl: str, aten: str, openblas: str) -> dict[str, str]:
    return {"MKL_CBWR": mkl, "ATEN_CPU_CAPABILITY": aten, "OPENBLAS_CORETYPE": openblas}


def run(environment: dict[str, str], arguments: list[str]) -> tuple[int, str]:
    """Exit status of one run of pytest, and its output."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not soak", *arguments]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def main() -> int:
    """Run ``FOLDERS`` (or the arguments) under every setting; 1 if a test failed under any."""
    worst, table = 0, [f"{'setting':18} {'passed':>7} {'failed':>7}"]
    for name, environment in settings().items():
        status, output = run(environment, sys.argv[1:] or FOLDERS)
        counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|error)", output)}
        failed = counts.get("failed", 0) + counts.get("error", 0)
        table.append(f"{name:18} {counts.get('passed', 0):7} {failed:7}")
        print(table[-1], flush=True)
        if status:
            worst = 1
            print("\n".join(re.findall(r"^(?:FAILED|ERROR).*", output, re.M)) or output[-2000:], flush=True)
    print("\n" + "\n".join(table))
    return worst


if __name__ == "__main__":
    sys.exit(main())
