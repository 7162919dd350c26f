import tyro

from experiments.tangent_machine_agreement.configs import Options
from experiments.tangent_machine_agreement.run import run

run(tyro.cli(Options))
