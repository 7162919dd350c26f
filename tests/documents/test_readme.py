"""What the README says is run as it stands there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
OUTPUT = re.findall(r"```text\n(.*?)```", README, flags=re.DOTALL)[0]


def test_python_blocks_run_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert blocks
    assert len(blocks[0].strip().splitlines()) <= 24  # imports and blank lines counted
    names: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert (tmp_path / "out/mine/audit.html").is_file()
    printed = capsys.readouterr().out
    auroc = re.search(r"^AUROC ([0-9.]+)", printed, flags=re.MULTILINE)
    assert auroc
    assert float(auroc[1]) > 0.97
    assert_similar(OUTPUT, printed)


def assert_similar(shown: str, printed: str):
    """Compare the headline that the README shows with the one that its code prints."""
    headlines = [re.search(r"This network memorized about ([0-9.]+)%", text) for text in (shown, printed)]
    assert all(headlines)
    shares = [float(headline[1]) for headline in headlines if headline]
    assert abs(shares[0] - shares[1]) < 3  # percentage points: another processor trains another network


def test_it_is_short():
    assert len(README.split()) < 700
    assert max(map(len, README.splitlines())) <= 125


def test_files_and_targets_that_it_names_exist():
    for link in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / link).is_file(), link
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for target in re.findall(r"make (\w+)", README):
        assert target in targets or target == "TORCH", target
