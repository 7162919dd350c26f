import tyro

from experiments.membership.run import Options, run

run(tyro.cli(Options))
