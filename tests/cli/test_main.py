"""``kernelmem``: version and help."""

import pytest

import kernelmem as km
from kernelmem.cli import main


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"kernelmem {km.__version__}\n"


@pytest.mark.parametrize("command", ["audit", "ntk", "ledger", "descent"])
def test_help_states_every_default_and_ends_every_sentence(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.replace("\N{BOX DRAWINGS LIGHT VERTICAL}", " ").split())
    assert "None)" not in text
    assert "(default: )" not in text
    descriptions = [part.rsplit(". ", 1) for part in text.split("(default:")[:-1]]
    assert descriptions
    assert all(len(part) == 2 and not part[1].strip() for part in descriptions)
