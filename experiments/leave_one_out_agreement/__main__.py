import tyro

from experiments.leave_one_out_agreement.configs import Options
from experiments.leave_one_out_agreement.run import run

run(tyro.cli(Options))
