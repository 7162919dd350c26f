"""Install the peers beside the development environment: `python -m experiments.benchmarks.loss_gradients.peers_setup`.

Without their dependencies, which would replace the torch under test (bergson asks for torchvision and torchaudio, and imports
neither here); those that their imports need and the environment lacks are named.
"""

import subprocess
import sys

from experiments.benchmarks.ntk.engines import ROOT

__all__ = ["FOLDER", "NEEDED", "PEERS"]

FOLDER = ROOT / ".venv-peers" / "loss_gradients"
PEERS = ("dattri==0.3.0", "dattri-llm==0.1.0", "bergson==2.5.1")
NEEDED = (  # by bergson
    "bitsandbytes==0.50.2",
    "datasets==5.2.0",
    "dill==0.4.1",
    "ml_dtypes==0.6.0",
    "multiprocess==0.70.19",
    "natsort==8.4.0",
    "optree==0.20.0",
    "petname==2.9",
    "pyarrow==26.0.1",
    "simple-parsing==0.1.9",
    "torchopt==0.7.3",
    "xxhash==4.1.0",
)


def main() -> None:
    """Make the folder; what is there stays."""
    if not FOLDER.exists():
        pip = (sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(FOLDER))
        subprocess.run([*pip, *PEERS, *NEEDED], check=True)


if __name__ == "__main__":
    main()
