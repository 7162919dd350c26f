"""Pages of the API reference, one per package, written from the names that the packages export.

A name that ``kernelmem`` itself exports stands under ``kernelmem.NAME`` on the page of its package, any other one under
the package from which users import it. The first line of its docstring is its entry in the table of the page.
"""

import ast
import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

SOURCE = Path(__file__).parents[2] / "kernelmem"
# Packages in the order of the picture of the design, each followed by the subpackages that users import from.
PACKAGES = (
    "recording",
    "recording.trainers",
    "tangents",
    "kernels",
    "trajectory",
    "kernel_machines",
    "label_noise",
    "memorization",
    "memorization.membership",
    "compression",
    "double_descent",
    "double_descent.theory",
    "double_descent.variance",
    "text",
    "auditing",
    "training",
    "statistics",
    "plotting",
    "testing",
    "core",
)


def exported_names(package: str) -> list[str]:
    """Names that the package exports as ``X as X``; the public functions and classes of a single file."""
    file = SOURCE / Path(*package.split(".")) / "__init__.py"
    if file.is_file():
        imports = [
            node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.ImportFrom)
        ]
        names = {alias.name for node in imports for alias in node.names if alias.asname == alias.name}
    else:
        tree = ast.parse(file.parent.with_suffix(".py").read_text(encoding="utf-8"))
        definitions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        names = {node.name for node in definitions}
    return sorted((name for name in names if not name.startswith("_")), key=lambda name: (name.lower(), name))


def contents() -> dict[str, list[str]]:
    """Public path of every name, by package; each object appears once."""
    kernelmem = importlib.import_module("kernelmem")
    top = {id(getattr(kernelmem, name)): name for name in exported_names("") if name != "__version__"}
    pages: dict[str, list[str]] = {}
    seen: set[int] = set()
    for package in PACKAGES:
        module = importlib.import_module(f"kernelmem.{package}")
        pages[package] = []
        for name in exported_names(package):
            value = getattr(module, name)
            if inspect.ismodule(value) or id(value) in seen:
                continue
            seen.add(id(value))
            pages[package].append(f"kernelmem.{top[id(value)]}" if id(value) in top else f"kernelmem.{package}.{name}")
    missing = [name for key, name in top.items() if key not in seen]
    if missing:
        raise RuntimeError(f"no package of the API reference exports {missing}")
    return pages


def public_names() -> Iterator[str]:
    """Public paths of all names."""
    for names in contents().values():
        yield from names


def first_line(text: str | None) -> str:
    """First paragraph of a docstring on one line, escaped."""
    return " ".join(" ".join(escaped_lines([(text or "").strip().partition("\n\n")[0].replace("\n", " ")])).split())


def lookup(path: str) -> object:
    """The object at a public path."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def entry(path: str) -> list[str]:
    """Directive of one name."""
    value = lookup(path)
    if inspect.isclass(value):
        options = ["   :members:"]
        if issubclass(value, Exception):
            options = []
        return [f".. autoclass:: {path}", *options, ""]
    if callable(value) and hasattr(value, "__name__"):
        return [f".. autofunction:: {path}", ""]
    return [f".. autodata:: {path}", "   :no-value:", ""]


def page(package: str, names: list[str]) -> str:
    """Text (reStructuredText) of the page of a package."""
    title = f"kernelmem.{package}"
    module = importlib.import_module(title)
    lines = [f".. _api-{package}:", "", title, "=" * len(title), "", first_line(module.__doc__), ""]
    lines += [".. list-table::", "   :widths: 30 70", ""] if names else []
    for path in names:
        value = lookup(path)
        documented = inspect.isclass(value) or inspect.isroutine(value)
        role = "class" if inspect.isclass(value) else "func" if inspect.isroutine(value) else "data"
        short = path.removeprefix(f"{title}.") if path.count(".") != 1 else f"km.{path.rpartition('.')[2]}"
        text = first_line(value.__doc__) if documented else ""
        lines += [f"   * - :py:{role}:`{short} <{path}>`", f"     - {text}"]
    lines += [""]
    for path in names:
        lines += entry(path)
    return "\n".join(lines) + "\n"


def write_pages(app: "Sphinx") -> None:
    """Write the pages, and leave those that did not change, so that Sphinx does not read them again."""
    folder = Path(app.srcdir) / "api"
    written = set()
    for package, names in contents().items():
        file = folder / f"{package}.rst"
        text = page(package, names)
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")
        written.add(file)
    for file in set(folder.glob("*.rst")) - written:
        file.unlink()


def escape_formulas(app: "Sphinx", what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Escape the bars and stars of formulas such as ``|x|``, which reStructuredText takes for markup."""
    if what == "data":  # the docstring of a constant's class
        lines.clear()
    if what in {"attribute", "property"} and lines:  # napoleon would take the text before a colon for a type
        lines[0] = lines[0].replace(": ", " – ", 1)
    lines[:] = escaped_lines(lines)
    if what == "class" and dataclasses.is_dataclass(value) and not any(line.startswith(":ivar") for line in lines):
        lines += ["", *(f":ivar {field}: {_escaped(comment)}" for field, comment in field_comments(value).items())]


def field_comments(value: object) -> dict[str, str]:
    """Comments of the fields of a result class, ``name: type  # comment``."""
    source = inspect.getsource(value)  # pyright: ignore[reportArgumentType]
    names = {field.name for field in dataclasses.fields(value)}  # pyright: ignore[reportArgumentType]
    found = re.findall(r"^    (\w+): [^#\n]*?  # (?!pyright)(.+)$", source, flags=re.MULTILINE)
    return {name: comment for name, comment in found if name in names}


def escaped_lines(lines: list[str]) -> list[str]:
    """The lines with escaped bars and stars, outside literal blocks and code."""
    escaped: list[str] = []
    literal: int | None = None  # indentation of the text that announced a literal block
    in_doctest = False
    for line in lines:
        indentation = len(line) - len(line.lstrip())
        in_doctest = line.lstrip().startswith(">>>") or (in_doctest and bool(line.strip()))
        if in_doctest:
            escaped.append(line)
            continue
        if literal is not None and line.strip() and indentation <= literal:
            literal = None
        if literal is None:
            parts = re.split(r"(``.*?``|`[^`]*`|\*\*[^*]+\*\*|(?<!\w)\*[A-Za-z][^*]*[a-z]\*(?!\w))", line)
            escaped.append("".join(part if at % 2 else _escaped(part) for at, part in enumerate(parts)))
            if line.rstrip().endswith("::") and not line.lstrip().startswith(".. "):
                literal = indentation
        else:
            escaped.append(line)
    return escaped


def _escaped(text: str) -> str:
    """The text with escaped bars, stars and final underscores (``coef_``)."""
    return re.sub(r"(?<!\\)([|*]|(?<=\w)_(?!\w))", r"\\\1", text)


def join_names(app: "Sphinx", what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Write fields of several names as ``a,b``: Sphinx takes the words before the last one for types."""
    for at, line in enumerate(lines):
        if field := re.match(r":(param|ivar) ([\w*\\]+(?:, [\w*\\]+)+):", line):
            lines[at] = f":{field[1]} {field[2].replace(', ', ',')}:{line[field.end() :]}"


def short_types(app: "Sphinx", what: str, name: str, value: object, options: object, signature: str, returns: str):
    """Write unions of types under the names that they have in the code."""
    from sphinx.util.typing import stringify_annotation

    from kernelmem.core import ArrayLike, Batch, Result

    if what == "class" and dataclasses.is_dataclass(value):
        if issubclass(value, Result):  # made by the package
            return "", None
        names = [field.name for field in dataclasses.fields(value) if field.init]
        return f"({', '.join(names)})", None
    for alias, types in (("Batch", Batch), ("ArrayLike", ArrayLike)):
        for mode in ("smart", "fully-qualified-except-typing", "fully-qualified"):
            signature = (signature or "").replace(stringify_annotation(types, mode), alias)
    return signature or None, returns


def skip_inherited(app: "Sphinx", what: str, name: str, value: object, skip: bool, options: object) -> bool | None:
    """Leave out methods that scikit-learn adds to estimators."""
    return True if name.startswith("set_") and name.endswith("_request") else None


def setup(app: "Sphinx") -> dict:
    """Write the pages before Sphinx looks for sources."""
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-process-docstring", escape_formulas, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", join_names, priority=600)  # after napoleon
    app.connect("autodoc-process-signature", short_types)
    app.connect("autodoc-skip-member", skip_inherited)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
