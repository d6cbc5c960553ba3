"""Sphinx configuration."""

import importlib.metadata
import json
import pathlib
import shutil
import sys

DOCS = pathlib.Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))

from benchmarks import results_page  # noqa: E402  found by the line before

project = "optax_nlcg"
author = "The optax_nlcg authors"
copyright = f"2026, {author}"
release = importlib.metadata.version("optax-nlcg")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
html_theme = "furo"
html_title = project
exclude_patterns = ["_build"]

myst_enable_extensions = ["dollarmath"]  # what formulas in notebooks are written in
myst_heading_anchors = 2

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# `Attributes:` of a NamedTuple as fields, not as further members: autodoc lists those.
napoleon_use_ivar = True

# Inventories are of other projects' sites; a build must not depend on reaching them.
intersphinx_mapping = {}
suppress_warnings = ["myst.header"]
# `make notebooks` runs them.
nb_execution_mode = "off"
nb_merge_streams = True


def _sources(notebook):
    cells = json.loads(notebook.read_text())["cells"]
    return [cell["source"] for cell in cells]


def _gather_notebooks(_):
    """Copies notebooks where there is no copy with outputs of the same source."""
    folder = DOCS / "notebooks"
    folder.mkdir(exist_ok=True)
    for notebook in (DOCS.parent / "notebooks").glob("*.ipynb"):
        copy = folder / notebook.name
        if not copy.exists() or _sources(copy) != _sources(notebook):
            shutil.copy(notebook, copy)


def _write_results(_):
    (DOCS / "results.md").write_text(results_page.page())


def setup(app):
    """Makes the pages that are not committed."""
    app.connect("builder-inited", _gather_notebooks)
    app.connect("builder-inited", _write_results)
