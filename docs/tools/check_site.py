"""Check the built site: links and anchors, public names, warnings of executed pages, numbers in the text of tutorials.

Usage: python docs/tools/check_site.py out/docs/html
"""

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

SOURCES = Path(__file__).parents[1]
SMALL = 12  # whole numbers up to this are words ("the 3 largest"), not results
NUMBER = re.compile(r"(?<![\w.,])\d[\d,]*(?:\.\d+)?(?:[eE][+-]?\d+)?(?![\w])")


class Page(HTMLParser):
    """Targets and anchors of one page."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect the attributes of one tag."""
        for name, value in attrs:
            if value and name in {"href", "src"}:
                self.targets.append(value)
            elif value and name in {"id", "name"}:
                self.anchors.add(value)


def read_pages(site: Path) -> dict[Path, Page]:
    """Parse every HTML page of the site."""
    pages = {}
    for path in sorted(site.rglob("*.html")):
        if "_static" in path.parts or "_downloads" in path.parts:
            continue
        pages[path.resolve()] = page = Page()
        page.feed(path.read_text(encoding="utf-8"))
    return pages


def broken_links(site: Path, pages: dict[Path, Page]) -> list[str]:
    """Links to missing files or anchors, and files that a browser would load from elsewhere."""
    problems = []
    for path, page in pages.items():
        for target in page.targets:
            parts = urlsplit(target)
            if parts.scheme or target.startswith("//"):
                continue
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            file = file / "index.html" if file.is_dir() else file
            if not file.is_file():
                problems.append(f"{path.relative_to(site)}: no file for the link {target}")
            elif parts.fragment and file in pages and unquote(parts.fragment) not in pages[file].anchors:
                problems.append(f"{path.relative_to(site)}: no anchor for the link {target}")
    return problems


def read_notebook(path: Path) -> list[dict]:
    """Return the cells of an executed page; MyST-NB writes pages that it takes from its cache without outputs."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    if any(cell["outputs"] for cell in code):
        return cells
    sources = [source(cell) for cell in code]
    for cached in (next(p for p in path.parents if p.name == "jupyter_execute").parent / "cache").rglob("base.ipynb"):
        executed = json.loads(cached.read_text(encoding="utf-8"))["cells"]
        if [source(cell) for cell in executed if cell["cell_type"] == "code"] == sources:
            return [cell for cell in cells if cell["cell_type"] != "code"] + executed
    return cells


def source(cell: dict) -> str:
    """Text of a cell."""
    return "".join(cell["source"])


def executed_warnings(site: Path) -> list[str]:
    """Warnings that executed pages wrote to stderr, which the pages do not show."""
    problems = []
    for path in sorted(site.parent.glob("jupyter_execute/**/*.ipynb")):
        for cell in read_notebook(path):
            for output in cell.get("outputs", []):
                text = "".join(output.get("text", [])) if output.get("name") == "stderr" else ""
                if "Warning" in text or "Error" in text:
                    problems.append(f"{path.stem}: {text.strip()[:300]}")
    return problems


def unsupported_numbers(site: Path) -> list[str]:
    """Numbers in the prose of a tutorial that neither its code nor its output contains, up to rounding."""
    problems = []
    for path in sorted(site.parent.glob("jupyter_execute/tutorials/*.ipynb")):
        cells = read_notebook(path)
        shown = " ".join(cell_text(cell) for cell in cells if cell["cell_type"] == "code")
        known = {value(number) for number in NUMBER.findall(shown)}
        for cell in cells:
            if cell["cell_type"] == "code":
                continue
            prose = re.sub(
                r"```.*?```|\$\$.*?\$\$|\$[^$\n]+\$|\{[\w:]+\}`[^`]*`|`[^`]*`|\]\([^)]*\)",
                " ",
                "".join(cell["source"]),
                flags=re.S,
            )
            prose = re.sub(
                r"\b[A-Z][\w-]+(?: (?:and|et al\.) ?[\w-]*)?,? \(?(?:19|20)\d\d\b", " ", prose
            )  # an author and a year
            for number in NUMBER.findall(prose):
                if not is_supported(number, known, percent=bool(re.search(re.escape(number) + r" ?%", prose))):
                    problems.append(
                        f"tutorials/{path.stem}: {number} is in the text, but not in the code or its output"
                    )
    return problems


def cell_text(cell: dict) -> str:
    """Source and text outputs of a code cell."""
    texts = ["".join(cell["source"])]
    for output in cell.get("outputs", []):
        texts.append("".join(output.get("text", [])))
        texts += ["".join(data) for kind, data in output.get("data", {}).items() if kind.startswith("text/")]
    return re.sub(r"<[^>]+>", " ", " ".join(texts))


def value(number: str) -> float:
    """The value of a printed number."""
    return float(number.replace(",", ""))


def is_supported(number: str, known: set[float], percent: bool) -> bool:
    """Check that a known number rounds to this one; a percentage may be known as a share."""
    decimals = len(number.partition(".")[2])
    wanted = value(number)
    if decimals == 0 and wanted <= SMALL:
        return True
    scales = (1, 100) if percent else (1,)
    return any(abs(scale * one - wanted) <= 0.5000001 * 10.0**-decimals for one in known for scale in scales)


def missing_names(pages: dict[Path, Page]) -> list[str]:
    """Public names that have no entry in the API reference."""
    sys.path[:0] = [str(SOURCES.parent)]  # kernelmem of this checkout
    from api_pages import public_names  # the module that writes the reference

    anchors = set().union(*(page.anchors for path, page in pages.items() if "api" in path.parts))
    return [f"{name} is public, but not in the API reference" for name in public_names() if name not in anchors]


def main(site: Path) -> int:
    """Print every problem; 1 if there is one."""
    pages = read_pages(site)
    problems = broken_links(site, pages) + executed_warnings(site) + unsupported_numbers(site)
    problems += missing_names(pages)
    for problem in problems:
        print(problem)
    print(f"{len(pages)} pages, {sum(len(page.targets) for page in pages.values())} links, {len(problems)} problems")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
