"""Runs the notebooks from top to bottom, with warnings as errors.

    python notebooks/execute.py [--out FOLDER] [NAME ...]

writes copies with outputs to FOLDER and fails if a cell does. The notebooks themselves
are committed without outputs.
"""

import argparse
import os
import pathlib
import time

import nbclient
import nbformat

HERE = pathlib.Path(__file__).parent
NAMES = [
    "quickstart",
    "which_part_does_what",
    "large_batch",
    "full_batch",
    "several_devices",
]
# The kernel's own warnings are not the notebook's.
STRICT = """
import warnings
warnings.simplefilter("error")
warnings.filterwarnings("default", module="ipykernel")
"""
SECONDS_PER_CELL = 180


def execute(name: str) -> nbformat.NotebookNode:
    """Runs a notebook in a process of its own."""
    notebook = nbformat.read(HERE / f"{name}.ipynb", as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(STRICT))
    nbclient.NotebookClient(
        notebook,
        timeout=SECONDS_PER_CELL,
        kernel_name="python3",
        extra_arguments=["--IPKernelApp.log_level=40"],
        resources={"metadata": {"path": str(HERE)}},
    ).execute()
    del notebook.cells[0]
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times, which differ in every run
        if cell.cell_type == "code" and cell.execution_count:
            cell.execution_count -= 1
    return notebook


def main() -> None:
    """Runs what the command line names; all, unless it names some."""
    parser = argparse.ArgumentParser(description="Runs the notebooks.")
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "executed")
    arguments = parser.parse_args()
    # Machines differ in their accelerators; what runs on a CPU runs everywhere.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.names:
        start = time.perf_counter()
        notebook = execute(name)
        nbformat.write(notebook, arguments.out / f"{name}.ipynb")
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
