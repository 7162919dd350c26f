import tyro

from experiments.flip_detection.configs import Options
from experiments.flip_detection.run import run

run(tyro.cli(Options))
