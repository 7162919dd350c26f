"""The rules of the layout: sizes of files, folders and signatures, what may be imported from where."""

import ast
import dataclasses
import importlib
import re
import statistics
from pathlib import Path

import pytest

import kernelmem
from kernelmem.core.files.result_files import Result

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "kernelmem"
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
FOLDERS = sorted({path.parent for path in FILES})

LONGEST, MEDIAN = 400, 150  # lines of a file
ENTRIES, ROOT_ENTRIES = 10, 20  # of a folder, besides __init__.py
PARAMETERS = 10
SIGNATURES_WITH_ANY = 40
MANY_PARAMETERS = {"kernelmem/kernels/ntk.py": {"ntk"}}  # and the scikit-learn estimators, whose signatures are flat
ESTIMATORS = PACKAGE / "kernel_machines" / "estimators"


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


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_is_short_and_says_what_it_is(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= LONGEST
    docstring = ast.get_docstring(TREES[path])
    assert docstring
    assert not re.match(r"(Of|Whether|Where|What|Which|How)\b", docstring), docstring.splitlines()[0]


def test_the_median_file_is_short():
    assert statistics.median(path.read_text(encoding="utf-8").count("\n") for path in FILES) <= MEDIAN


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_a_folder_has_few_entries(folder):
    entries = [entry for entry in folder.iterdir() if entry.name not in ("__init__.py", "__pycache__")]
    assert len(entries) <= (ROOT_ENTRIES if folder == PACKAGE else ENTRIES), sorted(entry.name for entry in entries)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_one_file_imports_torch_func(path):
    if path == PACKAGE / "core" / "models" / "torch_func.py":
        return
    outside = [(line, name) for line, name in imports(TREES[path]) if re.match(r"(functorch|torch\.func)(\.|$)", name)]
    assert outside == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_function_is_a_stub(path):
    names = {node.id for node in ast.walk(TREES[path]) if isinstance(node, ast.Name)}
    assert "NotImplementedError" not in names


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_function_has_many_parameters(path):
    if path.parent == ESTIMATORS:
        return
    allowed = MANY_PARAMETERS.get(name_of(path), set())
    long = {function.name: len(arguments(function)) for function in functions(TREES[path])}
    assert {name: n for name, n in long.items() if n > PARAMETERS and name not in allowed} == {}


def test_few_signatures_take_anything():
    """Annotations that name Any, besides ``*args: Any`` and ``**kwargs: Any`` that are passed on."""
    found = []
    for path, tree in TREES.items():
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


USERS = dict(users_of_the_package())


@pytest.mark.parametrize("name", USERS)
def test_users_import_from_packages_never_from_files(name):
    files = {module_of(path) for path in FILES if path.name != "__init__.py"}
    tree = ast.parse(USERS[name])
    inside = [(line, module) for line, module in imports(tree) if module in files]
    # ``from package import file`` reaches a file too
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                target = f"{node.module}.{alias.name}"
                if target in files and not hasattr(importlib.import_module(node.module), alias.name):
                    inside.append((node.lineno, target))
    assert inside == []


def test_no_public_name_shadows_a_package():
    """``km.audit`` once was a function and a package: ``km.audit.report`` raised AttributeError."""
    packages = {folder.name for folder in FOLDERS if folder.parent == PACKAGE}
    exported = {
        alias.asname
        for node in TREES[PACKAGE / "__init__.py"].body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert exported & packages == set()


@pytest.mark.parametrize("name", sorted(dir(kernelmem)))
def test_every_public_name_is_there_and_documented(name):
    value = getattr(kernelmem, name)
    if not name.startswith("_") and callable(value):
        assert value.__doc__


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


@pytest.mark.parametrize("cls", results(), ids=lambda cls: cls.__name__)
def test_results_are_frozen_compared_by_identity_and_print_their_summary(cls):
    assert dataclasses.is_dataclass(cls)
    assert cls.__dataclass_params__.frozen
    assert cls.__eq__ is object.__eq__
    assert cls.__repr__ is Result.__repr__
    assert callable(cls.to_frame)


def test_names_of_result_files_are_distinct():
    """The name of the class is the format of its file."""
    names = [cls.__name__ for cls in results()]
    assert len(set(names)) == len(names)
