import tyro

from experiments.attribution.configs import Options
from experiments.attribution.run import run

run(tyro.cli(Options))
