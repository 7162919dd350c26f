"""Python blocks of pages that are not executed when the site is built: they are run in order, as they stand there."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"```python\n(.*?)```", flags=re.DOTALL)
FOLDERS = ("about", "explanations", "start")
PAGES = sorted(
    page
    for folder in FOLDERS
    for page in (DOCS / folder).glob("*.md")
    if BLOCK.search(page.read_text(encoding="utf-8"))
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_python_blocks_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in BLOCK.findall(page.read_text(encoding="utf-8")):
        exec(compile(block, str(page), "exec"), names)


def test_every_question_has_a_snippet():
    page = (DOCS / "about" / "faq.md").read_text(encoding="utf-8")
    questions = page.split("\n### ")[1:]
    assert len(questions) >= 20
    for question in questions:
        assert BLOCK.search(question), question.splitlines()[0]
