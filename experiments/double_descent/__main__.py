import tyro

from kernelmem.cli.descent import DescentCommand

if __name__ == "__main__":  # processes that train import this file
    tyro.cli(DescentCommand).run()
