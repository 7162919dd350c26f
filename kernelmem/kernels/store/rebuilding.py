"""Copy of the readable tiles of a damaged store to a new file that replaces it."""

from contextlib import closing
from pathlib import Path

from kernelmem.core.files import file_system
from kernelmem.core.files.atomic_files import write_file
from kernelmem.kernels.store.database import connect
from kernelmem.kernels.store.layout import Index
from kernelmem.kernels.store.tiles import TileTable

LOGS = ("-wal", "-shm", "-journal")


def copy_tiles(table: TileTable, readable: list[Index], file: Path, empty: bytes) -> Path:
    """Write the readable tiles of a store to a new file next to it, and return its path.

    ``empty`` is the content of the file without tiles. After an error the new file is removed.
    """
    copy = file.with_name(f".{file.name}.repair")
    remove_database(copy)
    try:
        write_file(copy, empty)
        with closing(connect(copy, write=True)) as connection:
            target = table.of_copy(connection, copy)
            for index in readable:
                target.write(index, table.read(index))
            connection.execute("PRAGMA journal_mode=DELETE")
    except BaseException:
        remove_database(copy)
        raise
    return copy


def replace_database(copy: Path, file: Path) -> None:
    """Replace a closed store by its copy.

    The logs go first: SQLite would apply them to the copy. A kill in between leaves a store without the tiles of its log.
    """
    for suffix in LOGS:
        file_system.remove(file.with_name(file.name + suffix))
    file_system.rename(copy, file)
    file_system.sync_directory(file.absolute().parent)


def remove_database(file: Path) -> None:
    """Remove an SQLite file and its logs, if they exist."""
    for suffix in ("", *LOGS):
        file_system.remove(file.with_name(file.name + suffix))
