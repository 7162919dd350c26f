"""Files made to do harm, by name: to run code, to fill the memory, to run forever."""

import gzip
import io
import json
import os
import pickle
import struct
import zipfile
import zlib

import numpy as np
import torch

BOMB = 128 * 2**20  # bytes that a file of some kB unpacks to; more than the reading process may allocate


class Payload:
    """Creates the file ``mark`` when it is unpickled; by what it calls in which module."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def payloads(mark):
    """Objects whose unpickling runs a command."""
    command = f"touch {mark}"
    return {
        "system": Payload(os.system, command),
        "exec": Payload(exec, f"open({str(mark)!r}, 'w')"),
        "nested": {"model": {"w": [torch.zeros(1), Payload(os.system, command)]}},
        "key": {Payload(os.system, command): torch.zeros(1)},
        "getattr": Payload(getattr, Payload(__import__, "os"), "system"),
        "torch": Payload(torch.hub.load_state_dict_from_url, f"file://{mark}"),
        "numpy": Payload(np.load, io.BytesIO(b""), None, True),
    }


def zipped(entries, method=zipfile.ZIP_STORED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method, compresslevel=1) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return stream.getvalue()


def saved(value, **options):
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


def npy(shape, dtype="<f8", content=b""):
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def safetensors_file(header, content=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + content


def altered_zip(content, name, size):
    """Return a zip archive whose central directory says that the entry ``name`` has ``size`` bytes."""
    archive = bytearray(content)
    place = archive.rfind(b"PK\x01\x02")
    while place >= 0:
        length = struct.unpack_from("<H", archive, place + 28)[0]
        if archive[place + 46 : place + 46 + length] == name.encode():
            struct.pack_into("<I", archive, place + 24, size)
        place = archive.rfind(b"PK\x01\x02", 0, place)
    return bytes(archive)


def laughs(depth=28):
    """A list that contains itself twice, and so on: small, but with 2^depth leaves."""
    value = ["x"]
    for _ in range(depth):
        value = [value, value]
    return value


def weights(mark):
    """Contents of files of weights, by name with its suffix."""
    files = {}
    for name, value in payloads(mark).items():
        files[f"{name}.pt"] = saved(value)
        files[f"{name} legacy.pt"] = saved(value, _use_new_zipfile_serialization=False)
        files[f"{name} pickle.pth"] = pickle.dumps(value, protocol=2)
    zeros = bytes(BOMB)
    state = saved({"w": torch.zeros(4)})
    files["laughs.pt"] = pickle.dumps({"w": laughs()}, protocol=2)
    files["laughs zip.pt"] = saved({"w": laughs()})
    files["deep.pt"] = b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b"."
    files["expanded.pt"] = saved({"w": torch.zeros(1).expand(10**5, 10**5)})
    files["meta.pt"] = saved({"w": torch.empty(10**9, 10**3, device="meta")})
    files["long string.pt"] = b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"x."
    files["long bytes.pt"] = b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x."
    files["memo.pt"] = b"\x80\x02]r\xff\xff\xff\x7f."
    files["bomb.pt"] = zipped({"a/data.pkl": b"\x80\x02}.", "a/data/0": zeros, "a/version": b"3"}, zipfile.ZIP_DEFLATED)
    files["large entry.pt"] = altered_zip(state, "archive/data/0", 2**31)
    files["length.safetensors"] = safetensors_file({}, length=2**62)
    files["spaces.safetensors"] = safetensors_file(b"{}" + b" " * 10**7)
    files["deep.safetensors"] = safetensors_file(b'{"a":' * 10**5)
    entry = {"dtype": "F64", "shape": [2**40], "data_offsets": [0, 2**43]}
    files["claim.safetensors"] = safetensors_file({"w": entry})
    files["overlap.safetensors"] = safetensors_file(
        {str(k): {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]} for k in range(1000)}, bytes(8)
    )
    files["many.safetensors"] = safetensors_file(
        {str(k): {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for k in range(10**4)}
    )
    return files


def arrays(mark):
    """Contents of .npz files, by name."""
    zeros = bytes(BOMB)
    names = ("x_train", "y_train", "x_test", "y_test")
    objects = io.BytesIO()
    np.save(objects, np.array([Payload(os.system, f"touch {mark}")], dtype=object), allow_pickle=True)
    return {
        "objects.npz": zipped({f"{name}.npy": objects.getvalue() for name in names}),
        "pickle.npz": pickle.dumps(Payload(os.system, f"touch {mark}")),
        "claim.npz": zipped({f"{name}.npy": npy((2**40,)) for name in names}),
        "bomb.npz": zipped({f"{name}.npy": npy((len(zeros) // 8,), content=zeros) for name in names[:1]}, 8),
        "lies.npz": altered_zip(
            zipped({"x_train.npy": npy((len(zeros) // 8,), content=zeros)}, zipfile.ZIP_DEFLATED), "x_train.npy", 100
        ),
        "header.npz": zipped({"x_train.npy": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b"{"}),
        "code.npz": zipped({"x_train.npy": npy(f"__import__('os').system('touch {mark}')")}),
        "gzip.npz": gzip.compress(zlib.compress(zeros, 1)),
    }


def results():
    """Contents of files of results (.safetensors) and reports (.json), by name."""
    metadata = {"format": "kernelmem Spectrum 1", "values": "[" * 10**5}
    return {
        "deep values.safetensors": safetensors_file({"__metadata__": metadata}),
        "claim.safetensors": safetensors_file({"__metadata__": {"a": "b" * 10**6}}, length=2**40),
        "metadata.safetensors": safetensors_file({"__metadata__": {str(k): "x" for k in range(10**4)}}),
    }


def documents():
    return {
        "deep.json": b"[" * 10**6,
        "deep objects.json": b'{"a":' * 10**6,
        "digits.json": b'{"schema_version": ' + b"9" * 10**6 + b"}",
        "duplicates.json": b'{"a": 1, ' * 1000 + b"}",
        "exponent.json": b'{"schema_version": 1e999999999}',
    }
