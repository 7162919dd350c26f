import tyro

from experiments.out_of_distribution.configs import Options
from experiments.out_of_distribution.run import run

run(tyro.cli(Options))
