import tyro

from experiments.benchmarks.ledger.configs import Options
from experiments.benchmarks.ledger.run import run

run(tyro.cli(Options))
