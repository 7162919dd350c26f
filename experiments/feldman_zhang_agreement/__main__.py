import tyro

from experiments.feldman_zhang_agreement.configs import Options
from experiments.feldman_zhang_agreement.run import run

run(tyro.cli(Options))
