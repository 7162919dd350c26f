"""Run the benchmarks in the folders beside this file: all of them, or those that are named."""

import subprocess
import sys
from pathlib import Path

found = sorted(path.parent.name for path in Path(__file__).parent.glob("*/__main__.py"))
names = sys.argv[1:] or found
if unknown := [name for name in names if name not in found]:
    sys.exit(f"no benchmark {', '.join(unknown)}; there are {', '.join(found)}")
codes = [
    subprocess.run([sys.executable, "-m", f"experiments.benchmarks.{name}"], check=False).returncode for name in names
]
sys.exit(max(codes))
