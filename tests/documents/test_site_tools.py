"""The tools that write and check the documentation site."""

import json
import sys
from pathlib import Path

import pytest

import kernelmem as km

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs" / "tools"))

import api_pages  # noqa: E402
import check_site  # noqa: E402


def test_every_public_name_is_exported_by_a_package_of_the_reference():
    """The names of the pages themselves are compared with the built site, by ``make docs``."""
    exported = {name for package in api_pages.PACKAGES for name in api_pages.exported_names(package)}
    assert set(api_pages.exported_names("")) - {"__version__"} <= exported
    assert {name for name in dir(km) if name[0].isupper()} - {"TYPE_CHECKING"} <= exported
    assert api_pages.lookup("kernelmem.double_descent.sweep")
    assert set(api_pages.PACKAGES) >= {name for name in km._PACKAGES if name != "cli"}


def test_formulas_are_escaped_outside_code():
    lines = [
        "|x| <= ``|y|`` and coef_::",
        "",
        "    |literal|",
        "after * all, *word*",
        ">>> 2 * x_",
        "4 * y",
        "",
        "a * b",
    ]
    expected = [
        r"\|x\| <= ``|y|`` and coef\_::",
        "",
        "    |literal|",
        r"after \* all, *word*",
        ">>> 2 * x_",
        "4 * y",
        "",
    ]
    assert api_pages.escaped_lines(lines) == [*expected, r"a \* b"]


def make_site(folder: Path, body: str, prose: str, stderr: str = "") -> Path:
    site = folder / "html"
    (site / "tutorials").mkdir(parents=True)
    (site / "tutorials" / "page.html").write_text(f'<a id="here"></a>{body}')
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": "share 0.1234, 1,797 rows"},
        {"output_type": "stream", "name": "stderr", "text": stderr},
    ]
    cells = [
        {"cell_type": "markdown", "source": prose},
        {"cell_type": "code", "source": "n = 300", "outputs": outputs},
    ]
    notebook = folder / "jupyter_execute" / "tutorials" / "page.ipynb"
    notebook.parent.mkdir(parents=True)
    notebook.write_text(json.dumps({"cells": cells}))
    return site


@pytest.mark.parametrize("target", ["#here", "page.html#here", "../tutorials/page.html", "https://example.org/absent"])
def test_a_link_that_works_is_no_problem(tmp_path, target):
    site = make_site(tmp_path, f'<a href="{target}">', "")
    assert check_site.broken_links(site, check_site.read_pages(site)) == []


@pytest.mark.parametrize("target", ["#absent", "page.html#absent", "absent.html"])
def test_a_broken_link_is_found(tmp_path, target):
    site = make_site(tmp_path, f'<a href="{target}">', "")
    (problem,) = check_site.broken_links(site, check_site.read_pages(site))
    assert target in problem


@pytest.mark.parametrize(
    "prose", ["12 % of 1,797 rows", "0.12", "0.123 of `5.5`", "300 rows, the 3 largest", "Zhang 2017"]
)
def test_numbers_of_the_output_are_accepted(tmp_path, prose):
    assert check_site.unsupported_numbers(make_site(tmp_path, "", prose)) == []


@pytest.mark.parametrize("prose", ["13 % of the rows", "0.124", "1,798 rows"])
def test_other_numbers_are_found(tmp_path, prose):
    assert len(check_site.unsupported_numbers(make_site(tmp_path, "", prose))) == 1


def test_warnings_of_a_page_are_found(tmp_path):
    assert check_site.executed_warnings(make_site(tmp_path / "quiet", "", "", "5 of 10 steps")) == []
    assert len(check_site.executed_warnings(make_site(tmp_path / "loud", "", "", "UserWarning: no"))) == 1
