"""What the page of results is put together from: commands, pictures, result files."""

import os
import pathlib
import re

from benchmarks import readme

DOCS = readme.ROOT / "docs"
FOLDER = readme.ROOT / readme.RESULTS
RUN = ".venv/bin/python -m benchmarks"


def from_docs(path: pathlib.Path | str) -> str:
    """A path below the repository, as the page names it."""
    return os.path.relpath(readme.ROOT / path, DOCS)


def command(text: str) -> str:
    """A command, as a block."""
    return f"```sh\n{text}\n```\n"


def include(path: str) -> str:
    """The text of a result file."""
    return (FOLDER / path).read_text()


def image(path: str, what: str) -> str:
    """A plot of the results."""
    return f"![{what}]({from_docs(readme.RESULTS / path)})\n"


def download(path: str, what: str) -> str:
    """A link to a result file."""
    return f"[{what}]({from_docs(readme.RESULTS / path)})"


def from_readme(text: str) -> str:
    """A section of the README, its pictures and pages found from the docs."""
    text = re.sub(r"\]\(benchmarks/", "](../benchmarks/", text)
    return re.sub(r"\]\(docs/", "](", text)
