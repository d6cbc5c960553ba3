"""What a run records: curves, result rows and the circumstances they came from."""

import datetime
import functools
import importlib.metadata
import itertools
import json
import operator
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import jax
import optax

from benchmarks import report

PACKAGES = ("jax", "jaxlib", "optax", "flax", "numpy", "optax-nlcg")


def optimizer_scalars(opt_state: optax.OptState) -> dict[str, jax.Array]:
    """Finds what NLCG's stages report of themselves, if they are in the chain."""

    def values(name: str) -> list[jax.Array]:
        found = optax.tree.get_all_with_path(opt_state, name, _is_field)
        return [value for _, value in found]

    names = "beta", "scale", "num_skipped"
    names += "preconditioner_min", "preconditioner_mean", "preconditioner_max"
    scalars = {name: values(name) for name in names}
    return {
        name: functools.reduce(operator.add, found)
        for name, found in scalars.items()
        if found
    }


def _is_field(path: tuple[Any, ...], _: Any) -> bool:
    """Whether what stands there in a state is a field of a stage's, not a parameter's.

    Parameters may have the name too: normalisation has a ``scale``.
    """
    return isinstance(path[-1], optax.tree_utils.NamedTupleKey)


def flops(program: jax.stages.Lowered | jax.stages.Compiled) -> float:
    """Floating-point operations of a program, by XLA's count."""
    cost = program.cost_analysis()
    return cost["flops"] if cost else float("nan")


class CurveWriter:
    """Writes one line of JSON per step, and TensorBoard events if asked.

    A run that goes on at `first_step` keeps the lines of the steps before, if they are
    there, and drops what was written after its checkpoint.
    """

    def __init__(
        self, path: pathlib.Path, tensorboard: bool = False, first_step: int = 0
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        if first_step and path.exists():
            lines = path.read_text().splitlines(keepends=True)
            # The last line may have been cut off in the middle.
            whole = [line for line in lines if line.endswith("\n")]
            kept = [line for line in whole if json.loads(line)["step"] < first_step]
        # Put in place as a whole, so that there is no moment without the old lines.
        new = path.with_suffix(".new")
        new.write_text("".join(kept))
        new.replace(path)
        self._file = path.open("a")
        self._events = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._events = SummaryWriter(
                str(path.with_suffix("")), purge_step=first_step
            )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records the metrics of one step."""
        line = {"step": step, **{k: finite(v) for k, v in metrics.items()}}
        self._file.write(json.dumps(line) + "\n")
        if self._events is not None:
            for name, value in metrics.items():
                self._events.add_scalar(name, value, step)

    def flush(self) -> None:
        """Makes what was recorded so far visible to readers of the file."""
        self._file.flush()

    def close(self) -> None:
        """Ends the file."""
        self._file.close()
        if self._events is not None:
            self._events.close()


def finite(value: float) -> float | str:
    """Names NaN and infinities, which JSON lacks, and drops float32's noise digits."""
    return float(f"{value:.7g}") if abs(value) < float("inf") else str(value)


def append_row(path: pathlib.Path, row: Mapping[str, Any]) -> None:
    """Appends one result to a file with one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The last line may have been cut off in the middle.
    before = path.read_text() if path.exists() else ""
    cut = bool(before) and not before.endswith("\n")
    with path.open("a") as file:
        file.write("\n" * cut + json.dumps(row, default=str) + "\n")


def append_run(path: pathlib.Path, row: Mapping[str, Any]) -> None:
    """Appends the row of a run, unless it is there: one that had ended before."""
    rows = report.load(path) if path.exists() else []
    if all(other["run"] != row["run"] for other in rows):
        append_row(path, row)


def unused_name(folder: pathlib.Path, name: str) -> str:
    """A name for a run of which there is no curve: several may begin in a second."""
    others = (f"{name}-{number}" for number in itertools.count(2))
    names = itertools.chain([name], others)
    return next(n for n in names if not (folder / f"{n}.jsonl").exists())


class Progress:
    """A progress bar with the latest metrics behind it."""

    def __init__(self, title: str, total: int, shown: bool, first_step: int = 0):
        import tqdm

        # A log file gets a line now and then, a terminal a moving bar.
        interval = 0.1 if sys.stderr.isatty() else 5.0
        self._bar = tqdm.tqdm(
            total=total,
            initial=first_step,
            desc=title,
            disable=not shown,
            mininterval=interval,
        )

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """Moves the bar to `step` done."""
        self._bar.set_postfix(
            {name: f"{value:.4g}" for name, value in metrics.items()}, refresh=False
        )
        self._bar.update(step - self._bar.n)

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._bar.close()


def environment(num_devices: int) -> dict[str, Any]:
    """Describes where a result came from: device, versions, commit and date."""
    device = jax.devices()[0]
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "platform": device.platform,
        "device": device.device_kind,
        "num_devices": num_devices,
        "num_processes": jax.process_count(),
        "cpu_count": os.cpu_count(),
        "versions": versions,
        "git_commit": git_commit(),
    }


@functools.cache
def git_commit() -> str | None:
    """The commit of this checkout when first asked, "+" appended if files differ.

    A copy without its history, as on a cluster, takes it from GIT_COMMIT.
    """
    git = ["git", "-C", str(pathlib.Path(__file__).parent)]
    try:
        commit = subprocess.check_output(
            [*git, "rev-parse", "HEAD"], text=True, stderr=subprocess.DEVNULL
        ).strip()
        # Results are what a run writes, not what it ran.
        tracked = [*git, "status", "--porcelain", "--untracked-files=no", "--", "."]
        changes = subprocess.check_output([*tracked, ":!results"], text=True)
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("GIT_COMMIT")
    return commit + "+" * bool(changes.strip())
