"""What ``make lint`` asks of the files themselves: lengths, docstrings, one door to torch.func, no stubs."""

import ast
import statistics
import subprocess
import sys
from pathlib import Path

LONGEST, MEDIAN, PUBLIC = 400, 150, 40


def main() -> int:
    """Print every complaint; the exit code says whether there was one."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "kernelmem"], capture_output=True, text=True
    )
    names = [name for name in listed.stdout.splitlines() if name.endswith(".py")]
    files = [Path(name) for name in names] or sorted(Path("kernelmem").rglob("*.py"))
    complaints, lengths = [], []
    for path in files:
        text = path.read_text(encoding="utf-8")
        lengths.append(text.count("\n"))
        if lengths[-1] > LONGEST:
            complaints.append(f"{path}: {lengths[-1]} lines, at most {LONGEST}")
        tree = ast.parse(text)
        if ast.get_docstring(tree) is None:
            complaints.append(f"{path}: no docstring")
        for node in ast.walk(tree):
            modules = {
                ast.Import: lambda n: [alias.name for alias in n.names],
                ast.ImportFrom: lambda n: [n.module or ""],
            }.get(type(node), lambda n: [])(node)
            if (
                any(m.split(".")[0] == "functorch" or m == "torch.func" for m in modules)
                and path.name != "torch_func.py"
            ):
                complaints.append(f"{path}:{node.lineno}: torch.func is imported by core/torch_func.py alone")
            if isinstance(node, ast.Name) and node.id == "NotImplementedError":
                complaints.append(f"{path}:{node.lineno}: a stub")
    if statistics.median(lengths) > MEDIAN:
        complaints.append(f"median file length {statistics.median(lengths)}, at most {MEDIAN}")
    names = [n for n in ast.walk(ast.parse(Path("kernelmem/__init__.py").read_text())) if isinstance(n, ast.alias)]
    if len(names) > PUBLIC:
        complaints.append(f"kernelmem/__init__.py: {len(names)} public names, at most {PUBLIC}")
    print(
        "\n".join(complaints) or f"house: {len(files)} files, median {statistics.median(lengths):.0f} lines, in order"
    )
    return bool(complaints)


if __name__ == "__main__":
    sys.exit(main())
