import tyro

from experiments.benchmarks.shadows.configs import Options
from experiments.benchmarks.shadows.run import run

run(tyro.cli(Options))
