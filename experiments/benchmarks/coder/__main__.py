import tyro

from experiments.benchmarks.coder.run import Options, run

run(tyro.cli(Options))
