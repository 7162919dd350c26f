"""Files that the package writes and reads.

file_system     operations on files; every file that the package writes goes through them
atomic_files    files that are whole or absent
hashed_files    safetensors and JSON with a SHA-256 of their content, read so that no file is trusted
result_files    the mixin of every result class, and its files
weight_files    model weights, loaded without running code
"""

from kernelmem.core.files.atomic_files import array_sha256 as array_sha256
from kernelmem.core.files.atomic_files import check_directory as check_directory
from kernelmem.core.files.atomic_files import file_sha256 as file_sha256
from kernelmem.core.files.atomic_files import write_file as write_file
from kernelmem.core.files.atomic_files import write_files as write_files
from kernelmem.core.files.result_files import Result as Result
from kernelmem.core.files.weight_files import fit_weights as fit_weights
from kernelmem.core.files.weight_files import load_weights as load_weights
