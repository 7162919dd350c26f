import tyro

from experiments.text_memorization.run import Options, run

run(tyro.cli(Options))
