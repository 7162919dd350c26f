"""Every file that the package writes goes through kernelmem/core/files/file_system.py."""

import ast
import re

import pytest

from tests.architecture.test_layout import PACKAGE, name_of, trees

SEAM = PACKAGE / "core" / "files" / "file_system.py"
WRITING = re.compile(
    r"(os\.(open|replace|rename|remove|unlink|mkdir|makedirs|rmdir|fsync|truncate|ftruncate|write|pwrite|link|symlink)"
    r"|sqlite3\.connect|tempfile\.\w+|shutil\.(?!disk_usage)\w+|torch\.save|np\.memmap|safetensors(\.torch)?\.save_file"
    r"|.*\.(write_text|write_bytes|touch|mkdir|rmdir|unlink|symlink_to|hardlink_to|chmod|tofile))"
)
TO_A_STREAM = re.compile(r"np\.(save|savez|savez_compressed)|.*\.(savefig|to_csv|to_json|to_pickle|to_parquet)")
WITH_A_MODE = re.compile(r"open|.*\.open")
ALLOWED = {
    ("kernelmem/core/files/hashed_files.py", "os.open"): "for reading",
    ("kernelmem/recording/storage/directory.py", "os.open"): "the descriptor of a lock",
    ("kernelmem/kernels/store/writer_lock.py", "os.open"): "a lock, worthless after a crash",
    ("kernelmem/kernels/store/writer_lock.py", "os.ftruncate"): "a lock",
    ("kernelmem/kernels/store/writer_lock.py", "os.pwrite"): "a lock",
    ("kernelmem/kernels/store/writer_lock.py", ".unlink"): "a lock",
    ("kernelmem/kernels/large/tangent_files.py", "np.memmap"): "for reading: changes stay in memory",
    ("kernelmem/compression/verification/process.py", "tempfile.TemporaryFile"): "messages of a child, without a name",
    ("kernelmem/auditing/data_checks/row_kernel.py", "tempfile.TemporaryDirectory"): "removed when the kernel was used",
    ("kernelmem/compression/accounting/account.py", "tempfile.TemporaryDirectory"): "removed when the kernel was used",
    (
        "kernelmem/compression/online/kernel_scores.py",
        "tempfile.TemporaryDirectory",
    ): "removed when the kernel was used",
    ("kernelmem/auditing/retraining/budget.py", "tempfile.TemporaryDirectory"): "removed at the end of the audit",
}


def writes(tree):
    """(line, function) of the calls that open, write, rename or remove a file by its path."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = ast.unparse(node.func)
        arguments = [ast.unparse(argument) for argument in (*node.args, *(k.value for k in node.keywords))]
        stream = bool(node.args) and re.search(r"stream|buffer|figure", arguments[0]) is not None
        if (
            (WRITING.fullmatch(function) and "':memory:'" not in arguments)
            or (TO_A_STREAM.fullmatch(function) and node.args and not stream)
            or (WITH_A_MODE.fullmatch(function) and any(re.fullmatch(r"'[rbt]*[wax+][wax+bt]*'", a) for a in arguments))
        ):
            yield node.lineno, function


def is_allowed(path, function):
    return any(name == name_of(path) and function.endswith(call) for name, call in ALLOWED)


def test_only_one_file_writes():
    found = [
        (name_of(path), *call)
        for path, tree in trees().items()
        for call in writes(tree)
        if path != SEAM and not is_allowed(path, call[1])
    ]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "open(path, 'w')",
        "path.open('ab')",
        "open(path, mode='r+')",
        "Path(path).write_text('x')",
        "os.replace(a, b)",
        "np.save(path, x)",
        "frame.to_csv(path)",
        "sqlite3.connect(path)",
        "torch.save(x, path)",
        "figure.savefig(path)",
        "tempfile.mkstemp()",
    ],
)
def test_the_rule_sees(code):
    assert list(writes(ast.parse(code)))
    assert not list(writes(ast.parse("open(path); path.open('rb'); np.save(stream, x); frame.to_csv(index=False)")))
