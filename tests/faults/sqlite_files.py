"""File operations of SQLite, which calls a table of C functions: observed, or failing."""

import _sqlite3
import ctypes
import errno
import os
from contextlib import contextmanager
from ctypes import CFUNCTYPE, POINTER, c_int, c_int64, c_void_p
from pathlib import Path

METHODS = [
    "close", "read", "write", "truncate", "sync", "file_size", "lock", "unlock", "check_reserved_lock", "file_control",
    "sector_size", "characteristics", "map_memory", "lock_memory", "memory_barrier", "unmap_memory", "fetch", "unfetch",
]  # fmt: skip
VFS = [
    "next", "name", "data", "open", "delete", "access", "full_pathname", "dl_open", "dl_error", "dl_sym", "dl_close",
    "randomness", "sleep", "current_time", "last_error", "current_time_64", "set_system_call", "get_system_call",
    "next_system_call",
]  # fmt: skip
CODES = {"open": 14, "read": 266, "write": 778, "sync": 1034, "truncate": 1546, "delete": 2570, "map_memory": 5386}
FULL = 13  # SQLITE_FULL, for ENOSPC
CREATE, NEW_JOURNALS = 4, 0x800 | 0x4000 | 0x80000  # flags; SQLite syncs the directory with the first sync of a journal


class Methods(ctypes.Structure):
    _fields_ = [("version", c_int), *((name, c_void_p) for name in METHODS)]


class Vfs(ctypes.Structure):
    _fields_ = [("version", c_int), ("file_bytes", c_int), ("path_bytes", c_int), *((name, c_void_p) for name in VFS)]


# Names are pointers, not strings: SQLite keeps more behind the end of a name.
OPEN = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, POINTER(c_int))
DELETE = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int)
READ = WRITE = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)
TRUNCATE = CFUNCTYPE(c_int, c_void_p, c_int64)
SYNC = CFUNCTYPE(c_int, c_void_p, c_int)
MAP = CFUNCTYPE(c_int, c_void_p, c_int, c_int, c_int, POINTER(c_void_p))


def copied(kind, address):
    """Return a copy of a structure of this version; older ones are shorter."""
    version = ctypes.cast(address, POINTER(c_int))[0]
    shorter = {Methods: {1: 6, 2: 2}, Vfs: {1: 4, 2: 3}}[kind].get(version, 0)
    copy = kind()
    ctypes.memmove(ctypes.byref(copy), address, ctypes.sizeof(kind) - shorter * ctypes.sizeof(c_void_p))
    return copy


def path_of(name):
    return Path(os.fsdecode(ctypes.string_at(name)))


class ObservedFiles:
    """The default file system of SQLite, whose operations call ``observer(operation, path, offset, data)`` first.

    Operations: "open" (``data`` True if it creates the file), "read", "write", "truncate" (``offset`` is the size), "sync",
    "sync_directory", "delete", "map_memory". An OSError of the observer takes the place of the operation.
    """

    def __init__(self):
        self.library = ctypes.CDLL(_sqlite3.__file__)
        self.library.sqlite3_vfs_find.restype = c_void_p
        self.original = self.library.sqlite3_vfs_find(None)
        self.vfs = copied(Vfs, self.original)
        self.observer, self.syncs, self.paths, self.new_journals = None, True, {}, set()
        self.tables, self.errors = {}, []
        open_file, delete = OPEN(self.vfs.open), DELETE(self.vfs.delete)
        self.open_file, self.delete_file = open_file, delete
        self.callbacks = [OPEN(self.open), DELETE(self.delete)]
        self.name = ctypes.create_string_buffer(b"observed")
        self.vfs.name = ctypes.addressof(self.name)
        self.vfs.open, self.vfs.delete = (ctypes.cast(callback, c_void_p).value for callback in self.callbacks)
        self.library.sqlite3_vfs_register(ctypes.byref(self.vfs), 0)

    @contextmanager
    def mounted(self, observer, *, sync=True):
        """Let the files that are opened in the ``with`` block be observed, and do not sync them if ``sync`` is False."""
        self.observer, self.syncs = observer, sync
        self.library.sqlite3_vfs_register(ctypes.byref(self.vfs), 1)
        try:
            yield
        finally:
            self.library.sqlite3_vfs_register(c_void_p(self.original), 1)
            self.observer, self.syncs = None, True
        if self.errors:
            raise self.errors.pop()

    def code(self, operation, path, offset=0, data=b""):
        """Return the error of SQLite that takes the place of an operation; 0: none."""
        if self.observer is None or path is None:
            return 0
        try:
            self.observer(operation, path, offset, data)
        except OSError as error:
            is_full = error.errno == errno.ENOSPC and operation in ("write", "map_memory")
            return FULL if is_full else CODES[operation]
        except BaseException as error:  # raised when the block ends: it cannot pass through C
            self.errors.append(error)
            return CODES[operation]
        return 0

    def open(self, _, name, file, flags, flags_out):
        path = None if name is None else path_of(name)
        is_new = path is not None and bool(flags & CREATE) and not path.exists()
        ctypes.cast(file, POINTER(c_void_p))[0] = None  # no methods: SQLite does not close a file that was not opened
        if code := self.code("open", path, 0, is_new):
            return code
        code = self.open_file(self.original, name, file, flags, flags_out)
        methods = ctypes.cast(file, POINTER(c_void_p))
        if code == 0 and methods[0]:
            self.paths[file] = path
            self.new_journals.discard(path)
            if is_new and flags & NEW_JOURNALS:
                self.new_journals.add(path)
            methods[0] = self.table(methods[0])
        return code

    def delete(self, _, name, sync_directory):
        path = path_of(name)
        if path.exists() and (code := self.code("delete", path)):
            return code
        code = self.delete_file(self.original, name, sync_directory)
        if sync_directory and self.observer is not None:
            self.code("sync_directory", path.parent)
        return code

    def table(self, address):
        """Return the address of the observed methods for these methods."""
        if address not in self.tables:
            table = copied(Methods, address)
            read, write, truncate = READ(table.read), WRITE(table.write), TRUNCATE(table.truncate)
            sync, map_memory = SYNC(table.sync), MAP(table.map_memory) if table.map_memory else None

            def observed_read(file, buffer, size, offset):
                return self.code("read", self.paths[file], offset) or read(file, buffer, size, offset)

            def observed_write(file, buffer, size, offset):
                data = ctypes.string_at(buffer, size)
                return self.code("write", self.paths[file], offset, data) or write(file, buffer, size, offset)

            def observed_truncate(file, size):
                return self.code("truncate", self.paths[file], size) or truncate(file, size)

            def observed_sync(file, flags):
                path = self.paths[file]
                code = self.code("sync", path) or (sync(file, flags) if self.syncs else 0)
                if code == 0 and path in self.new_journals:
                    self.new_journals.discard(path)
                    self.code("sync_directory", path.parent)
                return code

            def observed_map(file, region, size, extend, pointer):
                code = self.code("map_memory", self.paths[file])
                if code:
                    pointer[0] = None
                return code or map_memory(file, region, size, extend, pointer)

            callbacks = {
                "read": READ(observed_read), "write": WRITE(observed_write), "truncate": TRUNCATE(observed_truncate),
                "sync": SYNC(observed_sync),
            }  # fmt: skip
            if map_memory is not None:  # journals are not shared
                callbacks["map_memory"] = MAP(observed_map)
            for name, callback in callbacks.items():
                setattr(table, name, ctypes.cast(callback, c_void_p).value)
            self.tables[address] = table, callbacks
        return ctypes.addressof(self.tables[address][0])


def observed_files():
    """Return the observed file system of SQLite; None if this build of SQLite does not give access to it."""
    global _files
    try:
        if _files is None:
            _files = ObservedFiles()
        return _files
    except (AttributeError, OSError):
        return None


_files = None
