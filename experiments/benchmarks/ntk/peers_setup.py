"""Install the peers beside the development environment, not into it: `python -m experiments.benchmarks.ntk.peers_setup`.

- `.venv-peers/torch`: packages for the PyTorch peers, without their dependencies (they ask for torchvision, which they do not
  use and which would replace the torch under test).
- `.venv-peers/jax`: an environment for the released neural-tangents, which needs an old JAX.

neural-tangents' structured derivatives run on its last commit and jax 0.4.35. A Python where that imports can be named in
the environment variable NEURAL_TANGENTS_PYTHON.
"""

import subprocess
import sys

from experiments.benchmarks.ntk.engines import JAX_PYTHON, TORCH_PACKAGES

TORCH_PEERS = ("nngeometry==0.4", "backpack-for-pytorch==1.7.1", "einops==0.8.2", "unfoldNd==0.2.3")
JAX_PEERS = ("jax==0.4.30", "jaxlib==0.4.30", "neural-tangents==0.6.5", "numpy<2")


def main() -> None:
    """Make both; what is there stays."""
    pip = (sys.executable, "-m", "pip", "install", "-q")
    if not TORCH_PACKAGES.exists():
        subprocess.run([*pip, "--no-deps", "--target", str(TORCH_PACKAGES), *TORCH_PEERS], check=True)
    if not JAX_PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", str(JAX_PYTHON.parents[1])], check=True)
        subprocess.run([str(JAX_PYTHON), "-m", "pip", "install", "-q", *JAX_PEERS], check=True)


if __name__ == "__main__":
    main()
