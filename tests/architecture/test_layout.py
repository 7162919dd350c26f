"""The rules of the layout: sizes of files, folders and signatures, what may be imported from where."""

import ast
import dataclasses
import importlib
import re
import statistics
from functools import cache
from pathlib import Path

import kernelmem
from kernelmem.core.files.result_files import Result

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "kernelmem"
FILES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = sorted({path.parent for path in FILES})

LONGEST, MEDIAN = 400, 150  # lines of a file
ENTRIES, ROOT_ENTRIES = 10, 20  # of a folder, besides __init__.py
PARAMETERS = 10
SIGNATURES_WITH_ANY = 40
MANY_PARAMETERS = {"kernelmem/kernels/ntk.py": {"ntk"}}  # and the scikit-learn estimators, whose signatures are flat
ESTIMATORS = PACKAGE / "kernel_machines" / "estimators"


@cache
def trees():
    """Every file of the package, parsed once: when a test asks, not in every worker that collects tests."""
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def arguments(function):
    spec = function.args
    return [a for a in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs) if a.arg not in ("self", "cls")]


def imports(tree):
    """(line, module) of every import in a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module


def test_files_are_short_and_say_what_they_are():
    long, unclear = {}, {}
    for path, tree in trees().items():
        docstring = ast.get_docstring(tree) or ""
        lines = path.read_text(encoding="utf-8").count("\n")
        if lines > LONGEST:
            long[name_of(path)] = lines
        if not docstring or re.match(r"(Of|Whether|Where|What|Which|How)\b", docstring):
            unclear[name_of(path)] = docstring.partition("\n")[0]
    assert long == {}
    assert unclear == {}


def test_the_median_file_is_short():
    assert statistics.median(path.read_text(encoding="utf-8").count("\n") for path in FILES) <= MEDIAN


def test_folders_have_few_entries():
    full = {}
    for folder in FOLDERS:
        entries = [entry.name for entry in folder.iterdir() if entry.name not in ("__init__.py", "__pycache__")]
        if len(entries) > (ROOT_ENTRIES if folder == PACKAGE else ENTRIES):
            full[name_of(folder)] = sorted(entries)
    assert full == {}


def test_only_one_file_imports_torch_func():
    users = {
        name_of(path)
        for path, tree in trees().items()
        for _, name in imports(tree)
        if re.match(r"(functorch|torch\.func)(\.|$)", name)
    }
    assert users == {"kernelmem/core/models/torch_func.py"}


def test_no_function_is_a_stub():
    stubs = [
        f"{name_of(path)}:{node.lineno}"
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and node.id == "NotImplementedError"
    ]
    assert stubs == []


def test_no_function_has_many_parameters():
    long = {
        f"{name_of(path)}:{function.lineno} {function.name}": len(arguments(function))
        for path, tree in trees().items()
        for function in functions(tree)
        if path.parent != ESTIMATORS and function.name not in MANY_PARAMETERS.get(name_of(path), ())
    }
    assert {name: n for name, n in long.items() if n > PARAMETERS} == {}


def test_few_signatures_take_anything():
    """Annotations that name Any, besides ``*args: Any`` and ``**kwargs: Any`` that are passed on."""
    found = []
    for path, tree in trees().items():
        for function in functions(tree):
            annotations = [argument.annotation for argument in arguments(function)] + [function.returns]
            words = {
                node.id for a in annotations if a is not None for node in ast.walk(a) if isinstance(node, ast.Name)
            }
            if "Any" in words:
                found.append(f"{name_of(path)}:{function.lineno} {function.name}")
    assert len(found) <= SIGNATURES_WITH_ANY, "\n".join(found)


def users_of_the_package():
    """Python files and code blocks that are written as a user would write them."""
    for folder in ("examples", "experiments", "docs"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield name_of(path), path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for number, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.S)):
            yield f"{name_of(path)} block {number + 1}", block


def test_users_import_from_packages_never_from_files():
    files = {module_of(path) for path in FILES if path.name != "__init__.py"}
    inside = []
    for name, text in users_of_the_package():
        tree = ast.parse(text)
        inside += [(name, line, module) for line, module in imports(tree) if module in files]
        # ``from package import file`` reaches a file too
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    target = f"{node.module}.{alias.name}"
                    if target in files and not hasattr(importlib.import_module(node.module), alias.name):
                        inside.append((name, node.lineno, target))
    assert inside == []


def test_no_public_name_shadows_a_package():
    """``km.audit`` once was a function and a package: ``km.audit.report`` raised AttributeError."""
    packages = {folder.name for folder in FOLDERS if folder.parent == PACKAGE}
    exported = {
        alias.asname
        for node in trees()[PACKAGE / "__init__.py"].body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert exported & packages == set()


def test_every_public_name_is_there_and_documented():
    values = {name: getattr(kernelmem, name) for name in dir(kernelmem)}
    assert [name for name, value in values.items() if name[0] != "_" and callable(value) and not value.__doc__] == []


@cache
def results():
    for path in FILES:
        if "(Result)" in path.read_text(encoding="utf-8"):
            importlib.import_module(module_of(path))
    pending, seen = [Result], []
    while pending:
        for cls in pending.pop().__subclasses__():
            if cls.__module__.startswith("kernelmem."):
                seen.append(cls)
                pending.append(cls)
    return sorted(seen, key=lambda cls: cls.__name__)


def test_results_are_frozen_compared_by_identity_and_print_their_summary():
    assert results()
    for cls in results():
        assert dataclasses.is_dataclass(cls), cls
        assert cls.__dataclass_params__.frozen, cls
        assert cls.__eq__ is object.__eq__, cls
        assert cls.__repr__ is Result.__repr__, cls
        assert callable(cls.to_frame), cls


def test_names_of_result_files_are_distinct():
    """The name of the class is the format of its file."""
    names = [cls.__name__ for cls in results()]
    assert len(set(names)) == len(names)
