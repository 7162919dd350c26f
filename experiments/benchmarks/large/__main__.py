import tyro

from experiments.benchmarks.large.run import Options, run

run(tyro.cli(Options))
