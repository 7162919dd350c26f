import tyro

from experiments.benchmarks.ensemble.configs import Options
from experiments.benchmarks.ensemble.run import run

run(tyro.cli(Options))
