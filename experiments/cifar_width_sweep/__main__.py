import tyro

from experiments.cifar_width_sweep.run import Options, run

run(tyro.cli(Options))
