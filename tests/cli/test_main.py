"""``kernelmem``: version, help, and the names of the package, which are imported on first use."""

import ast
import inspect
import subprocess
import sys
from importlib import import_module

import pytest

import kernelmem as km
from kernelmem.cli import main


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"kernelmem {km.__version__}\n"


@pytest.mark.parametrize("command", ["audit", "ntk", "ledger", "descent", "compress"])
def test_help_states_every_default_and_ends_every_sentence(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.replace("\N{BOX DRAWINGS LIGHT VERTICAL}", " ").split())
    assert "None)" not in text
    assert "(default: )" not in text
    descriptions = [part.rsplit(". ", 1) for part in text.split("(default:")[:-1]]
    assert descriptions
    assert all(len(part) == 2 and not part[1].strip() for part in descriptions)


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["audit", "--help"], ["compress", "--help"]])
def test_help_and_version_import_neither_torch_nor_scientific_packages(arguments):
    code = (
        "import sys, kernelmem.cli\n"
        f"try: kernelmem.cli.main({arguments})\n"
        "except SystemExit: pass\n"
        "print({'torch', 'numpy', 'scipy', 'sklearn', 'matplotlib', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_every_public_name_is_the_one_that_type_checkers_see():
    tree = ast.parse(inspect.getsource(km))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.asname: node.module for node in block.body for alias in node.names}
    assert {f"kernelmem.{km._PACKAGE_OF[name]}" for name in seen} == set(seen.values())
    for name, module in seen.items():
        assert getattr(km, name) is getattr(import_module(module), name)
    assert set(km._PACKAGE_OF) == set(seen)
    assert set(km._PACKAGE_OF) <= set(dir(km))
    assert all(getattr(km, name).__name__ == name for name in km._PACKAGE_OF)
    with pytest.raises(AttributeError, match="no attribute 'ntks'"):
        _ = km.ntks
