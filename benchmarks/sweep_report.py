"""Table and plot of a sweep, from its rows alone.

    python -m benchmarks.sweep_report runs/sweep

writes `table.md`, `targets.md` (steps and seconds to given accuracies), `budget.md`
(what fewer trials come to), `accuracy.png` and `budget.png` beside the rows that
`benchmarks.sweep` left.
"""

import argparse
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import optimizers, report, sweep_choice

Row = dict[str, Any]


# How many trials `budgets` tells of.
BUDGETS = 1, 2, 4, 8, 16, 32


def summarize(out: pathlib.Path) -> str:
    """Makes tables and plots from the rows; returns the tables."""
    rows = sweep_choice.final_runs(out)
    if not rows:
        return "No trial finished, so there is nothing to report.\n"
    trials = sweep_choice.trial_groups(out)
    groups = report.group_rows(rows, *sweep_choice.GROUP)
    header = "optimizer", "batch", "steps", "learning rate", "schedule", "warm-up"
    header += "decay", "smoothing", "own", "trials", "unfinished", "median trial %"
    header += "validation %", "test %", "training accuracy %", "gradients", "seconds"
    lines = []
    for (batch_size, num_epochs, name), group in sorted(
        groups.items(),
        key=lambda item: (*item[0][:2], _place(item[1])),
    ):
        config = group[0]["config"]
        same = trials[batch_size, num_epochs, name]
        best = sweep_choice.chosen(same)
        lines.append(
            (
                name,
                f"{batch_size:,}",
                f"{report.num_steps(group):,}",
                f"{config['learning_rate']:g}",
                config["schedule"],
                f"{config['warmup']:g}",
                f"{config['l2'] or config['weight_decay']:g}",
                f"{config['label_smoothing']:g}",
                own_setting(config),
                str(len(same)),
                str(sum(row["status"] != "finished" for row in same)),
                f"{100 * sweep_choice.median(same):.2f}",
                f"{100 * best['validation_accuracy']:.2f}" if best else "",
                accuracy_and_spread(group),
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
    with_fewer = budgets(out)
    (out / "budget.md").write_text(with_fewer)
    _plot(groups, out / "accuracy.png")
    return f"{table}\n{to_reach}\n{with_fewer}"


def by_steps(out: pathlib.Path) -> str:
    """A sweep in short: test accuracy by optimizer and number of steps.

    Args:
      out: folder of the sweep.

    Returns:
      A table with the mean and the standard deviation over seeds in percent and, behind
      the @, the learning rate; the best of the shortest runs first.
    """
    rows = sweep_choice.final_runs(out)
    by_length = report.group_rows(rows, "num_epochs")
    steps = {epochs: report.num_steps(same) for (epochs,), same in by_length.items()}
    lengths = sorted(steps)
    groups = report.group_rows(rows, "optimizer", "num_epochs")

    def order(name: str) -> list[float]:
        return [_place(groups.get((name, e), [])) for e in lengths]

    def cell(name: str, num_epochs: float) -> str:
        group = groups.get((name, num_epochs))
        if group is None:
            return ""
        return f"{accuracy_and_spread(group)} @{group[0]['config']['learning_rate']:g}"

    lines = [
        (name, *(cell(name, e) for e in lengths))
        for name in sorted(sorted({name for name, _ in groups}), key=order)
    ]
    header = "optimizer", *(f"{steps[e]:,} steps" for e in lengths)
    return f"{report.markdown(header, lines)}\n\n({report.circumstances(rows)})\n"


def best_trials(out: pathlib.Path, number: int) -> str:
    """What the best few trials come to on the test set.

    Their order on held-out images is luck in part.

    Args:
      out: folder of the sweep.
      number: of trials of each optimizer; left out are those with fewer tested, unless
        the one with the best mean is.

    Returns:
      A table in percent; mean and deviation are over seeds, in the last column over all
      runs of so many trials. Where trials were repeated, the one with the best mean on
      held-out images is bold.
    """
    lines = []
    for (batch_size, _, name), rows in sorted(sweep_choice.trial_groups(out).items()):
        best = sweep_choice.shortlist(out, rows, number)
        by_mean = sweep_choice.best_by_mean(best)
        tested = all(candidate.tests for candidate in best)
        is_chosen = by_mean is not None and by_mean.tests
        if len(best) < number or not (tested or is_chosen):
            continue
        cells = []
        for candidate in best:
            tests = candidate.tests
            text = accuracy_and_spread(tests) if tests else "not tested"
            text = f"**{text}**" if candidate is by_mean else text
            held_out = mean_and_spread(candidate.held_out)
            cells.append(f"{text} ({held_out})")
        every = [row for candidate in best for row in candidate.tests]
        steps = f"{report.num_steps(every):,}"
        cells.append(accuracy_and_spread(every) if tested else "")
        lines.append((f"{batch_size:,}", steps, name, str(len(rows)), *cells))
    header = "batch", "steps", "optimizer", "trials"
    header += tuple(f"{i + 1}. (held out)" for i in range(number))
    return f"{report.markdown((*header, 'all'), lines)}\n"


def budgets(out: pathlib.Path) -> str:
    """What tuning comes to with fewer trials than a sweep has.

    A budget of n trials gives the best of n; here it is the mean of that over all
    choices of n among the trials there are (Dodge et al., 2019, arXiv 1909.03004).

    Args:
      out: folder of the sweep, which also gets the plot, `budget.png`.

    Returns:
      A table in percent of the held-out images; the best with one trial first.
    """
    trials = sweep_choice.trial_groups(out)
    every = [row for rows in trials.values() for row in rows]
    finished = [row for row in every if row["status"] == "finished"]
    # Of trials: tests, which have more images to train on, take more.
    steps = {
        key: report.num_steps(rows)
        for key, rows in report.group_rows(finished, *sweep_choice.GROUP[:2]).items()
    }
    groups: dict[tuple[int, int], dict[str, list[float]]] = {}
    for (batch_size, num_epochs, name), rows in trials.items():
        if (batch_size, num_epochs) not in steps:
            continue
        curve = [sweep_choice.expected_best(rows, n) for n in range(1, len(rows) + 1)]
        of_length = groups.setdefault((batch_size, steps[batch_size, num_epochs]), {})
        of_length[name] = curve
    _plot_budgets(groups, out / "budget.png")
    most = max(len(curve) for curves in groups.values() for curve in curves.values())
    shown = [n for n in BUDGETS if n <= most]
    lines = [
        (
            *(f"{number:,}" for number in key),
            name,
            *(f"{curve[n - 1]:.1f}" if n <= len(curve) else "" for n in shown),
        )
        for key, curves in sorted(groups.items())
        for name, curve in sorted(curves.items(), key=lambda item: -item[1][0])
    ]
    header = "batch", "steps", "optimizer"
    header += tuple(f"{n} trial{'s' * (n > 1)}" for n in shown)
    return f"{report.markdown(header, lines)}\n\n{report.circumstances(every)}\n"


def _plot_budgets(
    groups: dict[tuple[int, int], dict[str, list[float]]], path: pathlib.Path
) -> None:
    """The best of n trials against n, a panel for each batch size and length of run."""
    figure, axes = report.new_figure(len(groups))
    for axis, (key, curves) in zip(axes, sorted(groups.items()), strict=True):
        for name, curve in curves.items():
            trials = np.arange(1, len(curve) + 1)
            marks = np.isin(trials, BUDGETS)
            axis.plot(trials, curve, markevery=marks, **report.line_style(name))
        axis.set_title("batch {:,}, {:,} steps".format(*key), fontsize=11)
        axis.set_xlabel("trials")
        axis.set_ylabel("accuracy of the best, %")
        axis.set_xscale("log", base=2)
        ticks = [n for n in BUDGETS if n <= max(map(len, curves.values()))]
        axis.set_xticks(ticks, [str(n) for n in ticks])
    report.add_legend(figure, axes)
    report.save_figure(figure, path)


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
    # With a run that diverged there is no mean, and no accuracy that it reaches.
    means = {key: mean for key, mean in means.items() if not math.isnan(mean)}
    shortest = min((num_epochs for _, num_epochs, _ in means), default=0)
    first = [mean for (_, epochs, _), mean in means.items() if epochs == shortest]
    goals = np.linspace(max(first), max(means.values()), number) if means else ()
    goals = sorted({np.floor(2 * goal) / 2 for goal in goals})
    lines = []
    for batch_size, name in sorted({(b, name) for b, _, name in groups}):
        cells, order = [], []
        for goal in goals:
            reached = [
                (report.num_steps(rows), _mean(rows, "seconds"))
                for key, rows in groups.items()
                if (key[0], key[2]) == (batch_size, name)
                and means.get(key, -math.inf) >= goal
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
    length = report.num_steps
    lines = {}
    for (batch_size, _, name), group in groups.items():
        lines.setdefault((name, batch_size), []).append(group)
    batch_sizes = {batch_size for _, batch_size in lines}
    beside = {}
    for line, points in lines.items():
        for number in map(length, points):
            beside.setdefault(number, []).append(line)
    panels = (axes[0], "test_accuracy"), (axes[1], "train_accuracy")
    for line, points in lines.items():
        name, batch_size = line
        points.sort(key=length)
        style = report.line_style(name)
        if len(batch_sizes) > 1:
            style["label"] = f"{name}, batch {batch_size:,}"
        # Side by side, so that the error bars do not hide each other.
        steps = [
            n * 1.02 ** (beside[n].index(line) - (len(beside[n]) - 1) / 2)
            for n in map(length, points)
        ]
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
        if len(beside) > 1:
            axis.set_xscale("log")
        axis.set_xticks(sorted(beside), [f"{number:,}" for number in sorted(beside)])
        axis.minorticks_off()
    report.add_legend(figure, axes[:1])
    report.save_figure(figure, path)


def _number(row: Row, key: str) -> float:
    return float(row.get(key, "nan"))


def own_setting(config: dict[str, Any]) -> str:
    """What an optimizer's own parameter is called, and its value; empty without one."""
    own = config["optimizer_setting"]
    return "" if own is None else f"{optimizers.SETTINGS[config['optimizer']]} {own:g}"


def accuracy_and_spread(rows: Sequence[Row]) -> str:
    """Mean and standard deviation over runs in percent."""
    return mean_and_spread([_number(row, "test_accuracy") for row in rows])


def mean_and_spread(shares: Sequence[float] | np.ndarray, sign: str = "") -> str:
    """Mean and standard deviation of shares in percent; `sign` as in format strings."""
    percent = 100 * np.array(shares)
    spread = f" ± {percent.std(ddof=1):.2f}" if len(shares) > 1 else ""
    return f"{percent.mean():{sign}.2f}{spread}"


def _place(rows: Sequence[Row]) -> float:
    """What to sort by: the best test accuracy first, what has none last."""
    mean = _mean(rows, "test_accuracy") if rows else math.nan
    return math.inf if math.isnan(mean) else -mean


def _mean(rows: Sequence[Row], key: str) -> float:
    return float(np.mean([_number(row, key) for row in rows]))


def main() -> None:
    """Reports on the sweep in a folder."""
    parser = argparse.ArgumentParser(description="Table and plot of a sweep.")
    parser.add_argument("out", type=pathlib.Path)
    out = parser.parse_args().out
    if not (path := out / "trials" / "results.jsonl").exists():
        parser.error(f"{out} is no folder of a sweep: there is no {path}")
    print(summarize(out))


if __name__ == "__main__":
    main()
