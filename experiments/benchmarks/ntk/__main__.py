import tyro

from experiments.benchmarks.ntk.configs import Options
from experiments.benchmarks.ntk.run import run

run(tyro.cli(Options))
