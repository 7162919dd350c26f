import tyro

from experiments.audit_validation.run import Options, run

run(tyro.cli(Options))
