"""``kernelmem audit``: its options, and what they name.

- ``command``: the command
- ``inputs``: data files, and networks that are trained on them; it imports torch, which ``--help`` does not need
"""

from kernelmem.cli.audit.command import AuditCommand as AuditCommand
