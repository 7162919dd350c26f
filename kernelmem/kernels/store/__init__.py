"""Kernel matrices in files: tiles that survive interruptions and are checked when they are read.

store         the kernel in one SQLite file: writing, verification, repair
matrix        streamed reading and products
export        array files: .npy, .zarr, .h5
rebuilding    a new file from the readable tiles of a damaged one
tiles         the table of tiles, with their hashes
header        format, layout, facts and notes in the file
layout        shape, dtype, tiles and facts
database      connections to the file
writer_lock   one writer at a time
"""

from kernelmem.kernels.store.store import KernelStore as KernelStore
