"""The table of versions: what it counts, and that nothing is left out of it."""

import json
import re
import subprocess
import sys
import tomllib

from benchmarks import versions

RESULTS = versions.ROOT / "benchmarks" / "results" / "versions"
MODULE = """
import pytest

def test_passes(): pass
def test_fails(): assert False
@pytest.mark.skip(reason="to be counted")
def test_is_skipped(): pass
@pytest.fixture
def broken(): raise ValueError
def test_is_not_reached(broken): pass
"""


def test_outcomes_are_counted(tmp_path):
    (tmp_path / "test_module.py").write_text(MODULE)
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-c", "/dev/null", "--junitxml", report]
    subprocess.run([*command, tmp_path], check=False, capture_output=True, cwd=tmp_path)
    assert versions.outcome(report) == {
        "passed": 1,
        "failed": 2,
        "skipped": 1,
        "failures": ["test_module::test_fails", "test_module::test_is_not_reached"],
    }


def test_table_is_that_of_the_rows_and_hides_no_failure():
    rows = json.loads((RESULTS / "results.json").read_text())
    assert (RESULTS / "table.md").read_text() == versions.table(rows)
    spoilt = {**rows[0], "failed": 3, "failures": ["tests.test_a::test_b"]}
    assert "| 3 " in versions.table([spoilt])
    assert f"with {rows[0]['set']}: `tests.test_a::test_b`" in versions.table([spoilt])


def test_sets_are_what_the_project_claims():
    project = tomllib.loads((versions.ROOT / "pyproject.toml").read_text())["project"]
    pythons = {version for name, version in versions.SETS.items() if name != "oldest"}
    classified = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    assert pythons == set(classified)
    assert project["requires-python"] == f">={versions.SETS['oldest']}"
    workflow = versions.ROOT / ".github" / "workflows" / "ci.yml"
    (matrix,) = re.findall(r"python: \[(.*)\]", workflow.read_text())
    assert {version.strip(' "') for version in matrix.split(",")} == pythons
    assert all("==" in pin and ">" not in pin for pin in versions.oldest())
    assert len(versions.oldest()) == 3
