"""Sphinx configuration."""

import importlib.metadata
import json
import pathlib
import re
import shutil

DOCS = pathlib.Path(__file__).parent

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
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_title = project
exclude_patterns = ["_build"]

myst_enable_extensions = ["dollarmath"]  # formulas, as GitHub takes them
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


def _enrich(_, docname, source):
    """Makes of what can be read in the repository what the site does better."""
    if docname.startswith("notebooks/"):
        return
    text = source[0].replace("](../notebooks/", "](notebooks/")
    text = re.sub(r"(?m)^\[Table\]\((\S+)\)$", r"```{include} \1\n```", text)
    results = r"\[([^]]+)\]\((\.\./benchmarks/results/\S+\.md)\)"
    text = re.sub(results, r"{download}`\1 <\2>`", text)
    source[0] = re.sub(r"(?<![`}])`(optax_nlcg(\.\w+)+)`", r"{py:obj}`\1`", text)


def setup(app):
    """Takes in what is not in this folder, and connects it."""
    app.connect("builder-inited", _gather_notebooks)
    app.connect("source-read", _enrich)
