"""Runs that a sweep has tuned, with something changed: what studies of them share."""

import argparse
import dataclasses
import pathlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from benchmarks import metrics, report, sweep, sweep_choice, sweep_report
from benchmarks.config import Config

Row = dict[str, Any]
Settings = dict[str, Any]
Name = TypeVar("Name", bound=Hashable)

AS_CHOSEN = "as chosen"


def study(
    description: str,
    out: str,
    changes: Callable[[Config], dict[Name, Settings]],
    summarize: Callable[[dict[str, dict[Name, list[Row]]], pathlib.Path], str],
    options: Sequence[argparse.ArgumentParser] = (),
) -> None:
    """Makes the runs of a study from its command line that are not there, and reports.

    Args:
      description: as in `parse`.
      out: as in `parse`.
      changes: what to change in the run that a sweep chose, by name.
      summarize: makes table and plot in a folder, and returns the table, of rows by
        optimizer and name of the change, one for each seed.
      options: as in `parse`.
    """
    arguments, choices = parse(description, out, options)
    rows: dict[str, dict[Name, list[Row]]] = {}
    for optimizer, choice in choices.items():
        rows[optimizer] = {}
        for name, settings in changes(Config(**choice["config"])).items():
            runs = changed(
                choice, settings, arguments.seeds, arguments.data_dir, arguments.out
            )
            rows[optimizer][name] = same = list(map(sweep.run_or_recall, runs))
            what = ", ".join(f"{field} {value}" for field, value in settings.items())
            print(f"{optimizer} {what or AS_CHOSEN}: {held_out(same)} %", flush=True)
    print(summarize(rows, arguments.out))
    print(f"Rows, table and plot: {arguments.out}")


def write_table(
    header: Sequence[str],
    lines: Sequence[Sequence[str]],
    rows: dict[str, dict[Name, list[Row]]],
    out: pathlib.Path,
) -> str:
    """Writes `table.md` of a study, with the circumstances of its rows."""
    every = [row for runs in rows.values() for same in runs.values() for row in same]
    table = f"{report.markdown(header, lines)}\n\n({report.circumstances(every)})\n"
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(table)
    return table


def means(
    rows: dict[str, dict[Name, list[Row]]],
) -> dict[str, dict[Name, float]]:
    """Mean accuracies on held-out images in percent; the best optimizer first."""
    accuracies = {
        optimizer: {
            name: float(np.mean([100 * sweep_choice.accuracy(row) for row in same]))
            for name, same in runs.items()
        }
        for optimizer, runs in rows.items()
    }
    order = sorted(accuracies, key=lambda name: -max(accuracies[name].values()))
    return {name: accuracies[name] for name in order}


def held_out(rows: Sequence[Row]) -> str:
    """Mean and deviation of runs' accuracies on held-out images, in percent."""
    return sweep_report.mean_and_spread(list(map(sweep_choice.accuracy, rows)))


def parse(
    description: str, out: str, options: Sequence[argparse.ArgumentParser] = ()
) -> tuple[argparse.Namespace, dict[str, Row]]:
    """Reads the command line of a study.

    Args:
      description: of the study, for its help.
      out: name of the folder in the sweep's for its results.
      options: parsers of what only this study has.

    Returns:
      The arguments, and what the sweep chose for each optimizer.
    """
    parser = argparse.ArgumentParser(description=description, parents=options)
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
    path = arguments.sweep / "trials" / "results.jsonl"
    if not path.exists():
        parser.error(f"{arguments.sweep} is no folder of a sweep: there is no {path}")
    trials = report.load(path)
    if len(sizes := {row["config"]["batch_size"] for row in trials}) > 1:
        parser.error(
            f"{arguments.sweep} has batch sizes {', '.join(map(str, sorted(sizes)))}: "
            "the study is of a sweep with one"
        )
    choices = {}
    groups = report.group_rows(trials, "optimizer", "num_epochs")
    known = {name for name, _ in groups}
    if unknown := set(arguments.optimizers or ()) - known:
        parser.error(
            f"{arguments.sweep} has no trials of {', '.join(sorted(unknown))}, but of "
            f"{', '.join(sorted(known))}"
        )
    for (name, num_epochs), rows in groups.items():
        choice = sweep_choice.chosen(rows)
        if num_epochs != arguments.num_epochs or choice is None:
            continue
        if not arguments.optimizers or name in arguments.optimizers:
            choices[name] = choice
    if not choices:
        epochs = f"{arguments.num_epochs:g} epochs"
        parser.error(f"{arguments.sweep} has no trials of {epochs} that finished")
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
