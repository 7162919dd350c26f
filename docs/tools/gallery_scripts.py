"""Scripts of the gallery: a copy of ``examples/`` in which they run, and the figures that they save under ``out/``."""

import re
import shutil
from pathlib import Path
from typing import Any


def copy_scripts(source: Path, target: Path) -> Path:
    """Copy the scripts to ``target``, where they may write, and return it."""
    target.mkdir(parents=True, exist_ok=True)
    for old in target.glob("*.py"):
        if not (source / old.name).is_file():
            old.unlink()
    for file in (*source.glob("*.py"), *source.glob("*.rst")):
        shutil.copyfile(file, target / file.name)
    return target


def remove_results(gallery_conf: dict[str, Any], script: str | Path) -> None:
    """Remove what an earlier build of the site wrote under ``out/`` of the copy."""
    for name in _saved_names(Path(gallery_conf["examples_dirs"]) / Path(script).name):
        shutil.rmtree(Path(gallery_conf["examples_dirs"]) / "out" / name.split("/")[0], ignore_errors=True)


def saved_figures(block: object, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """Image scraper: the PNG files that the script names and has saved."""
    from sphinx_gallery.scrapers import figure_rst

    script = Path(block_vars["src_file"])
    paths = []
    for name in _saved_names(script):
        paths.append(next(block_vars["image_path_iterator"]))
        shutil.copyfile(script.parent / "out" / name, paths[-1])
    return figure_rst(paths, gallery_conf["src_dir"])


def _saved_names(script: Path) -> list[str]:
    """Names of the figures in the source, ``"out/NAME.png"``."""
    return sorted(set(re.findall(r'"out/([\w/]+\.png)"', script.read_text(encoding="utf-8"))))
