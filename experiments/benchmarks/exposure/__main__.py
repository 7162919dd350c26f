import tyro

from experiments.benchmarks.exposure.run import Options, run

run(tyro.cli(Options))
