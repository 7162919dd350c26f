import tyro

from experiments.audit_validation.checks import CheckOptions, run_checks
from experiments.audit_validation.subsets import Options, run

options = tyro.extras.subcommand_cli_from_dict({"subsets": Options, "checks": CheckOptions})
if isinstance(options, CheckOptions):
    run_checks(options)
else:
    run(options)
