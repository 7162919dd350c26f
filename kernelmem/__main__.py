"""``python -m kernelmem`` is ``kernelmem``."""

import sys

from kernelmem.cli import main

sys.exit(main())
