"""Runs the library's tests with several versions of what it stands on.

    python -m benchmarks.versions --out benchmarks/results/versions

For the oldest versions that `pyproject.toml` allows, and for the newest that pip finds
for each Python, makes an environment with nothing else in it and runs `tests`, without
those of the benchmarks, whose packages are not the library's. Each Python has to be
there as `python3.X`. Writes `results.json` and `table.md`; with `--only` it replaces
the rows of these sets.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import xml.etree.ElementTree
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.metrics import git_commit
from benchmarks.report import Row, markdown

ROOT = pathlib.Path(__file__).parent.parent
# The newest JAX for Python 3.11 is not the newest.
SETS = {
    "oldest": "3.11",
    "newest-3.11": "3.11",
    "newest-3.12": "3.12",
    "newest-3.13": "3.13",
}
PACKAGES = "jax", "optax", "flax", "numpy"
INSTALLED = f"""
import importlib.metadata, json, platform
versions = {{name: importlib.metadata.version(name) for name in {PACKAGES}}}
print(json.dumps({{"python": platform.python_version(), **versions}}))
"""


def oldest() -> list[str]:
    """The least versions of what `pyproject.toml` asks for, as requirements."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = project["dependencies"] + project["optional-dependencies"]["flax"]
    return [requirement.replace(">=", "==") for requirement in needed]


def make_environment(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Installs a set; returns the Python of its environment."""
    interpreter = shutil.which(f"python{SETS[name]}")
    if interpreter is None:
        raise FileNotFoundError(f"the set {name!r} needs python{SETS[name]}")
    subprocess.run([interpreter, "-m", "venv", "--clear", folder], check=True)
    python = folder / "bin" / "python"
    install = [python, "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    pins = oldest() if name == "oldest" else []
    subprocess.run([*install, "-e", f"{ROOT}[flax,test]", *pins], check=True)
    return python


def outcome(report: pathlib.Path) -> dict[str, Any]:
    """Counts of a JUnit report, and the tests that failed."""
    cases = list(xml.etree.ElementTree.parse(report).iter("testcase"))
    failures = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = sum(case.find("skipped") is not None for case in cases)
    return {
        "passed": len(cases) - len(failures) - skipped,
        "failed": len(failures),
        "skipped": skipped,
        "failures": failures,
    }


def run(name: str, scratch: pathlib.Path, processes: str) -> Row:
    """Runs the tests with one set of versions."""
    python = make_environment(scratch / "environment", name)
    versions = subprocess.check_output([python, "-c", INSTALLED], text=True)
    report = scratch / "report.xml"
    report.unlink(missing_ok=True)
    tests = [python, "-m", "pytest", "-q", "-n", processes, "--dist", "worksteal"]
    tests += ["--ignore", "tests/benchmarks", "--junitxml", report]
    tests.append("--continue-on-collection-errors")
    start = time.perf_counter()
    status = subprocess.run(tests, cwd=ROOT, check=False).returncode
    row = {
        "set": name,
        "versions": json.loads(versions),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu_count": os.cpu_count(),
        "git_commit": git_commit(),
        "seconds": round(time.perf_counter() - start),
        **outcome(report),
    }
    if (status != 0) != bool(row["failed"]):
        raise RuntimeError(f"{name}: pytest ended with {status}, the report says {row}")
    return row


def table(rows: Iterable[Row]) -> str:
    """What passed with which versions, and what did not."""
    rows = list(rows)
    header = "versions", "Python", "JAX", "Optax", "Flax", "NumPy"
    counts = "passed", "failed", "skipped"
    lines = [
        (
            row["set"].partition("-")[0],
            *(row["versions"][name] for name in ("python", *PACKAGES)),
            *(f"{row[count]:,}" for count in counts),
        )
        for row in rows
    ]
    text = markdown((*header, *counts), lines) + "\n"
    for row in rows:
        if row["failed"]:
            failures = ", ".join(f"`{test}`" for test in row["failures"])
            text += f"\nFailed with {row['set']}: {failures}.\n"
    dates = sorted({row["date"][:10] for row in rows})
    systems = sorted({row["platform"] for row in rows})
    return f"{text}\n({', '.join(systems)}; {' to '.join(dates)}.)\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the sets; returns the number of those with failures."""
    parser = argparse.ArgumentParser(description="The tests with several versions.")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs"))
    parser.add_argument("--only", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--processes", default="auto", help="of the tests")
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "results.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    by_set = {row["set"]: row for row in rows}
    for name in args.only:
        with tempfile.TemporaryDirectory() as scratch:
            by_set[name] = run(name, pathlib.Path(scratch), args.processes)
        rows = [by_set[name] for name in SETS if name in by_set]
        path.write_text(json.dumps(rows, indent=1) + "\n")
        (args.out / "table.md").write_text(table(rows))
    print(table(rows))
    return sum(by_set[name]["failed"] > 0 for name in args.only)


if __name__ == "__main__":
    sys.exit(main())
