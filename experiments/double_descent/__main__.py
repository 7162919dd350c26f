import sys

from kernelmem.cli import main

if __name__ == "__main__":  # worker processes import this file
    sys.exit(main(["descent", *sys.argv[1:]]))
