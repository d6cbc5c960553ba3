"""Table and plot of a sweep, from its rows alone.

    python -m benchmarks.sweep_report runs/sweep

writes `table.md`, `targets.md` (steps and seconds to given accuracies) and
`accuracy.png` beside the rows that `benchmarks.sweep` left.
"""

import argparse
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks import optimizers, report

Row = dict[str, Any]

# What a trial chooses.
TUNED = "learning_rate", "schedule", "warmup", "l2", "weight_decay", "label_smoothing"
TUNED += ("optimizer_setting",)
# What it is chosen for.
_FIXED = "batch_size", "num_epochs", "optimizer"


def chosen(rows: Sequence[Row]) -> Row | None:
    """The trial with the best accuracy; of equals, with the least loss."""
    finished = [row for row in rows if row["status"] == "finished"]
    if not finished:
        return None
    return max(
        finished, key=lambda row: (row["validation_accuracy"], -row["validation_loss"])
    )


def median(rows: Sequence[Row]) -> float:
    """The median accuracy of trials: what an arbitrary setting gives.

    A trial that was given up or diverged counts as worse than any other.
    """
    finished = [
        row["validation_accuracy"] if row["status"] == "finished" else 0.0
        for row in rows
    ]
    return float(np.median(finished))


def tested(out: pathlib.Path) -> list[Row]:
    """The runs that test what is chosen among all trials there are.

    A sweep that went on with more trials has tested its former choices too.
    """
    best = {key: chosen(rows) for key, rows in _trials(out).items()}
    return [
        row
        for row in report.load(out / "final" / "results.jsonl")
        if (choice := best[tuple(row["config"][name] for name in _FIXED)]) is not None
        and all(row["config"][name] == choice["config"][name] for name in TUNED)
    ]


def _trials(out: pathlib.Path) -> dict[tuple, list[Row]]:
    return report.group_rows(report.load(out / "trials" / "results.jsonl"), *_FIXED)


def summarize(out: pathlib.Path) -> str:
    """Makes tables and the plot from the rows; returns the tables."""
    rows = tested(out)
    trials = _trials(out)
    groups = report.group_rows(rows, *_FIXED)
    header = "optimizer", "batch", "steps", "learning rate", "schedule", "warm-up"
    header += "decay", "smoothing", "own", "trials", "unfinished", "median trial %"
    header += "validation %", "test %", "training accuracy %", "gradients", "seconds"
    lines = []
    for (batch_size, num_epochs, name), group in sorted(
        groups.items(),
        key=lambda item: (*item[0][:2], -_mean(item[1], "test_accuracy")),
    ):
        config = group[0]["config"]
        same = trials[batch_size, num_epochs, name]
        best = chosen(same)
        own = config["optimizer_setting"]
        lines.append(
            (
                name,
                f"{batch_size:,}",
                f"{group[0]['num_steps']:,}",
                f"{config['learning_rate']:g}",
                config["schedule"],
                f"{config['warmup']:g}",
                f"{config['l2'] or config['weight_decay']:g}",
                f"{config['label_smoothing']:g}",
                f"{optimizers.SETTINGS[name]} {own:g}" if own is not None else "",
                str(len(same)),
                str(sum(row["status"] != "finished" for row in same)),
                f"{100 * median(same):.2f}",
                f"{100 * best['validation_accuracy']:.2f}" if best else "",
                _test_accuracy(group),
                f"{100 * _mean(group, 'train_accuracy'):.2f}",
                f"{_mean(group, 'gradient_equivalents'):.0f}",
                f"{_mean(group, 'seconds'):.1f}",
            )
        )
    table = report.markdown(header, lines)
    table += f"\n\n{report.circumstances(rows)}\n"
    (out / "table.md").write_text(table)
    to_reach = f"{targets(groups)}\n\n{report.circumstances(rows)}\n"
    (out / "targets.md").write_text(to_reach)
    _plot(groups, out / "accuracy.png")
    return f"{table}\n{to_reach}"


def by_steps(out: pathlib.Path) -> str:
    """A sweep in short: test accuracy by optimizer and number of steps.

    Args:
      out: folder of the sweep.

    Returns:
      A table with the mean and the standard deviation over seeds in percent and, behind
      the @, the learning rate; the best of the shortest runs first.
    """

    def cell(rows: Sequence[Row]) -> str:
        return f"{_test_accuracy(rows)} @{rows[0]['config']['learning_rate']:g}"

    rows = tested(out)
    table = _by_steps(rows, rows, lambda rows: _mean(rows, "test_accuracy"), cell)
    return f"{table}\n\n({report.circumstances(rows)})\n"


def medians(out: pathlib.Path) -> str:
    """What an arbitrary setting gives: the median of all trials of a sweep.

    Args:
      out: folder of the sweep.

    Returns:
      A table in percent, like that of `by_steps`; in brackets the number of trials.
    """

    def cell(rows: Sequence[Row]) -> str:
        return f"{100 * median(rows):.2f} ({len(rows)})"

    trials = report.load(out / "trials" / "results.jsonl")
    return _by_steps(trials, report.load(out / "final" / "results.jsonl"), median, cell)


def _by_steps(
    rows: Sequence[Row],
    finals: Sequence[Row],
    value: Callable[[Sequence[Row]], float],
    cell: Callable[[Sequence[Row]], str],
) -> str:
    """A row for each optimizer, a column for each length of run, named by `finals`."""
    steps = {row["config"]["num_epochs"]: row["num_steps"] for row in finals}
    groups = report.group_rows(rows, "optimizer", "num_epochs")

    def order(name: str) -> list[float]:
        return [
            -value(groups[name, e]) if (name, e) in groups else 0.0 for e in lengths
        ]

    lengths = sorted(steps)
    lines = [
        (name, *(cell(groups[name, e]) if (name, e) in groups else "" for e in lengths))
        for name in sorted({name for name, _ in groups}, key=order)
    ]
    return report.markdown(
        ("optimizer", *(f"{steps[e]:,} steps" for e in lengths)), lines
    )


def targets(groups: dict[tuple, list[Row]], number: int = 3) -> str:
    """Steps and seconds of the shortest runs that reach given test accuracies.

    Each length of run has settings of its own, so this is what a user who knows the
    budget beforehand needs, not where the curve of a longer run passes.

    Args:
      groups: final runs by batch size, number of epochs and optimizer.
      number: how many accuracies, evenly from the best optimizer's in the shortest runs
        to the best of all, rounded down to half points.

    Returns:
      A table; the fewest steps first.
    """
    means = {key: 100 * _mean(rows, "test_accuracy") for key, rows in groups.items()}
    shortest = min(num_epochs for _, num_epochs, _ in groups)
    start = max(mean for (_, epochs, _), mean in means.items() if epochs == shortest)
    goals = np.linspace(start, max(means.values()), number)
    goals = sorted({np.floor(2 * goal) / 2 for goal in goals})
    lines = []
    for batch_size, name in sorted({(b, name) for b, _, name in groups}):
        cells, order = [], []
        for goal in goals:
            reached = [
                (rows[0]["num_steps"], _mean(rows, "seconds"))
                for key, rows in groups.items()
                if (key[0], key[2]) == (batch_size, name) and means[key] >= goal
            ]
            steps, seconds = min(reached, default=(np.inf, np.inf))
            order.append(steps)
            cells.append(f"{steps:,} ({seconds:.1f} s)" if reached else "not reached")
        lines.append(((batch_size, order), (name, f"{batch_size:,}", *cells)))
    header = "optimizer", "batch", *(f"steps to {goal:g} %" for goal in goals)
    return report.markdown(header, [line for _, line in sorted(lines)])


def _plot(groups: dict[tuple, list[Row]], path: pathlib.Path) -> None:
    """Test and training accuracy against the number of steps.

    Training losses cannot be compared: penalties and label smoothing are chosen for
    each optimizer and belong to them.
    """
    figure, axes = report.new_figure(2)
    lines = {}
    for (batch_size, _, name), group in groups.items():
        lines.setdefault((name, batch_size), []).append(group)
    batch_sizes = {batch_size for _, batch_size in lines}
    panels = (axes[0], "test_accuracy"), (axes[1], "train_accuracy")
    for place, ((name, batch_size), points) in enumerate(lines.items()):
        # Side by side, so that the error bars do not hide each other.
        shift = 1.02 ** (place - (len(lines) - 1) / 2)
        points.sort(key=lambda group: group[0]["num_steps"])
        style = report.line_style(name)
        if len(batch_sizes) > 1:
            style["label"] = f"{name}, batch {batch_size:,}"
        steps = [shift * group[0]["num_steps"] for group in points]
        for axis, key in panels:
            values = [[100 * _number(row, key) for row in group] for group in points]
            spread = [float(np.std(v, ddof=1)) if len(v) > 1 else 0.0 for v in values]
            axis.errorbar(
                steps, [np.mean(v) for v in values], spread, capsize=3, **style
            )
    axes[0].set_ylabel("test accuracy, %")
    axes[1].set_ylabel("accuracy on the last mini-batch, %")
    for axis in axes:
        axis.set_xlabel("steps")
        steps = sorted({group[0]["num_steps"] for group in groups.values()})
        if len(steps) > 1:
            axis.set_xscale("log")
        axis.set_xticks(steps, [f"{number:,}" for number in steps])
        axis.minorticks_off()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    report.save_figure(figure, path)


def _number(row: Row, key: str) -> float:
    return float(row.get(key, "nan"))


def _test_accuracy(rows: Sequence[Row]) -> str:
    values = np.array([100 * _number(row, "test_accuracy") for row in rows])
    spread = f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else ""
    return f"{values.mean():.2f}{spread}"


def _mean(rows: Sequence[Row], key: str) -> float:
    return float(np.mean([_number(row, key) for row in rows]))


def main() -> None:
    """Reports on the sweep in a folder."""
    parser = argparse.ArgumentParser(description="Table and plot of a sweep.")
    parser.add_argument("out", type=pathlib.Path)
    print(summarize(parser.parse_args().out))


if __name__ == "__main__":
    main()
