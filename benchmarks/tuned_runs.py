"""Runs that a sweep has tuned, with something changed: what studies of them share."""

import argparse
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks import metrics, report, sweep, sweep_choice
from benchmarks.config import Config

Row = dict[str, Any]


def parse(description: str, out: str) -> tuple[argparse.Namespace, dict[str, Row]]:
    """Reads the command line of a study.

    Args:
      description: of the study, for its help.
      out: name of the folder in the sweep's for its results.

    Returns:
      The arguments, and what the sweep chose for each optimizer.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("sweep", type=pathlib.Path)
    parser.add_argument("--num-epochs", type=float, required=True)
    parser.add_argument("--optimizers", nargs="+", help="default: all of the sweep")
    parser.add_argument("--seeds", nargs="+", type=int, default=[4, 5])
    parser.add_argument("--data-dir", type=pathlib.Path, default=pathlib.Path("data"))
    parser.add_argument("--out", type=pathlib.Path, help=f"default: <sweep>/{out}")
    arguments = parser.parse_args()
    if sweep.TUNING_SEED in arguments.seeds:
        parser.error(
            f"--seeds must not have {sweep.TUNING_SEED}: settings are chosen by it"
        )
    metrics.git_commit()  # as it is now, not when the runs end
    arguments.out = arguments.out or arguments.sweep / out
    trials = report.load(arguments.sweep / "trials" / "results.jsonl")
    if len(sizes := {row["config"]["batch_size"] for row in trials}) > 1:
        parser.error(
            f"{arguments.sweep} has batch sizes {', '.join(map(str, sorted(sizes)))}: "
            "the study is of a sweep with one"
        )
    choices = {}
    groups = report.group_rows(trials, "optimizer", "num_epochs")
    for (name, num_epochs), rows in groups.items():
        choice = sweep_choice.chosen(rows)
        if num_epochs != arguments.num_epochs or choice is None:
            continue
        if not arguments.optimizers or name in arguments.optimizers:
            choices[name] = choice
    if not choices:
        epochs = f"{arguments.num_epochs:g} epochs"
        parser.error(f"{arguments.sweep} has no trials of {epochs}")
    return arguments, choices


def changed(
    choice: Row,
    changes: dict[str, Any],
    seeds: Sequence[int],
    data_dir: pathlib.Path,
    out: pathlib.Path,
) -> Iterator[Config]:
    """The runs of what a sweep chose with some settings changed.

    Args:
      choice: the trial that the sweep chose.
      changes: settings of a `Config`.
      seeds: of the initial weights and the order of the images.
      data_dir: as in `Config`.
      out: as in `Config`.
    """
    config = Config(**choice["config"])
    for seed in seeds:
        yield dataclasses.replace(
            config, **changes, seed=seed, give_up_at=None, data_dir=data_dir, out=out
        )
