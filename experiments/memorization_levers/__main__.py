import tyro

from experiments.memorization_levers.levers import Options
from experiments.memorization_levers.run import run

run(tyro.cli(Options))
