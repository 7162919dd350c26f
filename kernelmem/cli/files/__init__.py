"""Commands on files that kernelmem has written.

ledger   check of a recorded run and its ledgers
store    contents, check, export and repair of a stored kernel
"""

from kernelmem.cli.files.ledger import LedgerCommand as LedgerCommand
from kernelmem.cli.files.store import StoreCommand as StoreCommand
