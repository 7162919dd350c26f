import tyro

from experiments.benchmarks.loss_gradients.configs import Options
from experiments.benchmarks.loss_gradients.run import run

run(tyro.cli(Options))
