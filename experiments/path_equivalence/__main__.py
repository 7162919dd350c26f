import tyro

from experiments.path_equivalence.configs import Options
from experiments.path_equivalence.run import run

run(tyro.cli(Options))
