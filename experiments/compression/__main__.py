import tyro

from experiments.compression.run import Options, run

run(tyro.cli(Options))
