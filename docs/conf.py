"""Sphinx configuration."""

import importlib.metadata

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

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# `Attributes:` of a NamedTuple as fields, not as further members: autodoc lists those.
napoleon_use_ivar = True

# Inventories are of other projects' sites; a build must not depend on reaching them.
intersphinx_mapping = {}
suppress_warnings = ["myst.header"]
nb_execution_mode = "off"
