import tyro

from experiments.benchmarks.machines.configs import Options
from experiments.benchmarks.machines.run import run

run(tyro.cli(Options))
