"""Configuration of the documentation site: Sphinx, furo, MyST notebooks that are executed, a gallery of the examples."""

import os
import sys
from pathlib import Path

# Before anything loads a BLAS: pages are executed side by side, one thread each.
for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")
os.environ.setdefault("SMALL", "1")  # examples that have a quick form run in it

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS / "tools"), str(DOCS.parent)]

from experiment_figures import write_figures  # noqa: E402
from gallery_scripts import copy_scripts  # noqa: E402

from kernelmem import __version__  # noqa: E402

project = "kernelmem"
author = "The kernelmem developers"
copyright = author  # noqa: A001
release = version = __version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "api_pages",
    "mathml",
    "myst_nb",
    "sphinx_design",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
if os.environ.get("KERNELMEM_DOCS_LINKS"):  # links into the documentation of PyTorch and others need a network
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "sklearn": ("https://scikit-learn.org/stable", None),
    }

exclude_patterns = ["images", "**sg_execution_times.rst", "tools", "gallery/examples/*.ipynb", "**/.ipynb_checkpoints"]
nitpicky = False
suppress_warnings = ["ref.python"]  # a field name that several classes have

# Pages
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath", "substitution"]
myst_heading_anchors = 3

# Executed pages
nb_execution_mode = "cache"  # a page is executed again only when its code changes; a fresh clone executes all
nb_execution_cache_path = str(DOCS.parent / "out" / "docs" / "cache")
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_output_stderr = "remove"  # progress bars; tools/check_site.py refuses pages whose stderr has warnings
nb_merge_streams = True

# API reference
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes in the text of their class, not as entries of their own

# Gallery of the examples and experiments
write_figures(DOCS / "gallery" / "images")
sphinx_gallery_conf = {
    "examples_dirs": str(copy_scripts(DOCS.parent / "examples", DOCS.parent / "out" / "docs" / "examples")),
    "gallery_dirs": "gallery/examples",
    "filename_pattern": r"\.py$",
    "image_scrapers": ("gallery_scripts.saved_figures",),
    "reset_modules": ("gallery_scripts.remove_results",),
    "capture_repr": (),
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_signature": False,
    "show_memory": False,
    "min_reported_time": 1e9,
    "parallel": 2,
    "remove_config_comments": True,
    "thumbnail_size": (480, 320),
}

# Appearance
html_math_renderer = "mathml"
html_theme = "furo"
html_title = "kernelmem"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
pygments_style = "friendly"
pygments_dark_style = "monokai"
