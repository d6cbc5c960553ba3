"""Notebooks are as a reader and a reviewer need them; `make notebooks` runs them."""

import ast
import json
import pathlib
import re

import pytest

FOLDER = pathlib.Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def cells_of(path, kind):
    cells = json.loads(path.read_text())["cells"]
    return ["".join(c["source"]) for c in cells if c["cell_type"] == kind]


def test_all_are_run():
    tree = ast.parse((FOLDER / "execute.py").read_text())
    (names,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "NAMES"
    )
    assert sorted(names) == [path.stem for path in NOTEBOOKS]


def test_they_name_one_repository():
    text = "".join(path.read_text() for path in NOTEBOOKS)
    found = re.findall(r"github(?:\.com)?/([\w.-]+/[\w.-]+?)(?=[/\\\"])", text)
    assert len(found) >= 2 * len(NOTEBOOKS)
    assert len(set(found)) == 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebook:
    def test_has_no_outputs(self, path):
        for cell in json.loads(path.read_text())["cells"]:
            assert not cell.get("outputs")
            assert cell.get("execution_count") is None

    def test_opens_itself_in_colab(self, path):
        first = cells_of(path, "markdown")[0]
        assert first.startswith("# ")
        assert "colab.research.google.com/github/" in first
        assert f"/blob/main/notebooks/{path.name})" in first

    def test_installs_the_package_where_it_is_missing(self, path):
        first = cells_of(path, "code")[0]
        assert 'find_spec("optax_nlcg") is None' in first
        assert "%pip install" in first
