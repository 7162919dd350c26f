import tyro

from experiments.benchmarks.audit.configs import Options
from experiments.benchmarks.audit.run import run

run(tyro.cli(Options))
