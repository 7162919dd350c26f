"""Install the peer into its own environment: `python -m experiments.benchmarks.ledger.peers_setup`.

`.venv-peers/explaind`: explaind without its dependencies (plots, a pinned pandas, a torch that would replace the one under
test), and tensordict with its own, which its StepExplainer needs. It asks for Python 3.12, and runs on 3.11.
"""

import subprocess
import sys

from experiments.benchmarks.ledger.engines import PEER_PACKAGES

PEERS = (
    "explaind==0.1.0",
    "tensordict==0.13.0",
    "pyvers==0.2.3",
    "cloudpickle==3.1.2",
    "importlib_metadata==10.2.0",
    "orjson==3.13.0",
    "packaging==26.3",
    "zipp==4.1.2",
)


def main() -> None:
    """What is there stays."""
    pip = (sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--ignore-requires-python")
    if not PEER_PACKAGES.exists():
        subprocess.run([*pip, "--target", str(PEER_PACKAGES), *PEERS], check=True)


if __name__ == "__main__":
    main()
