"""What more images in a batch bring: sweeps at several batch sizes side by side.

    python -m benchmarks.growing_batch

draws `benchmarks/results/growing_batch/accuracy.png` from the rows of the sweeps in
`PANELS`: test accuracy of what was chosen at each batch size, tuned anew there. Where
sweeps of a constant learning rate are named beside them, lines are those, and faint
marks the ones with rates that fall; of both what several seeds chose, of the first at
last, where choices were tuned further.
"""

import pathlib
from collections.abc import Sequence

import numpy as np

from benchmarks import report, sweep_choice, sweep_pairs

PICTURE = "growing_batch/accuracy.png"
# Sweeps, their numbers of epochs and of trials, a batch size each; the largest batch
# last.
Sweeps = tuple[tuple[str, float, int], ...]
SAME_STEPS = "As many steps at every batch size"
PANELS: dict[str, Sweeps] = {
    SAME_STEPS: (
        ("sweep_cifar100_16x16", 1, 48),
        ("sweep_cifar100_16x16_b8192", 4, 48),
        ("sweep_cifar100_16x16_b16384", 8, 48),
    ),
    "As many epochs at every batch size": (
        ("sweep_cifar100_16x16", 4, 12),
        ("sweep_cifar100_16x16_b8192", 4, 24),
    ),
}
CONSTANT_RATE: dict[str, Sweeps] = {
    SAME_STEPS: tuple(
        (folder, num_epochs, 16)
        for folder, (_, num_epochs, _) in zip(
            sweep_pairs.CONSTANT_RATE, PANELS[SAME_STEPS], strict=True
        )
    ),
}


def comparable(sweeps: Sweeps) -> list[report.Row]:
    """Final runs of optimizers that every sweep has.

    The best at the largest batch come first.

    Args:
      sweeps: folders, numbers of epochs and of trials.
    """
    runs = [
        report.group_rows(
            sweep_choice.final_runs(report.RESULTS / folder, num_epochs, num_trials),
            "optimizer",
        )
        for folder, num_epochs, num_trials in sweeps
    ]

    def at_the_largest(name: tuple) -> float:
        return float(np.mean([row["test_accuracy"] for row in runs[-1][name]]))

    names = sorted(set.intersection(*map(set, runs)), key=at_the_largest, reverse=True)
    return [row for name in names for groups in runs for row in groups[name]]


def by_several_seeds(
    sweeps: Sweeps, names: Sequence[str] = sweep_pairs.REPEATED
) -> list[report.Row]:
    """Final runs of what several seeds chose; the best trials were repeated.

    Args:
      sweeps: folders, numbers of epochs and of trials.
      names: of optimizers.
    """
    rows = []
    for name in names:
        for folder, num_epochs, num_trials in sweeps:
            out = report.RESULTS / folder
            groups = sweep_choice.trial_groups(out).items()
            trials = {key[1:]: group for key, group in groups}.get((num_epochs, name))
            if trials and (choices := sweep_pairs.choices_of(out, trials[:num_trials])):
                _, by_mean, _ = choices
                rows += by_mean
    return rows


def best_known(sweeps: Sweeps) -> list[report.Row]:
    """Final runs of what several seeds chose, at last where it was tuned further.

    Args:
      sweeps: folders, numbers of epochs and of trials.
    """
    return [
        row
        for name in (sweep_pairs.NESTEROV, *sweep_pairs.REPEATED)
        for sweep in sweeps
        for row in sweep_pairs.tuned_further(report.RESULTS / sweep[0]).get(name)
        or by_several_seeds((sweep,), [name])
    ]


def plot(out: pathlib.Path) -> None:
    """Test accuracy against batch size, a panel a comparison."""
    figure, axes = report.new_figure(len(PANELS))
    for axis, (title, sweeps) in zip(axes, PANELS.items(), strict=True):
        rows = comparable(sweeps)
        if title in CONSTANT_RATE:
            report.draw_batch_sizes(axis, best_known(CONSTANT_RATE[title]))
            hollow = {"linestyle": "none", "markerfacecolor": "none", "alpha": 0.5}
            falling = by_several_seeds(sweeps)
            report.draw_batch_sizes(axis, falling, label=None, **hollow)
        else:
            report.draw_batch_sizes(axis, rows)
        sizes = sorted(report.group_rows(rows, "batch_size").items())
        labels = [f"{size:,}\n{report.num_steps(r)} steps" for (size,), r in sizes]
        axis.set_xticks(range(len(labels)), labels)
        axis.set_title(title)
    report.add_legend(figure, axes)
    report.save_figure(figure, out)


def main() -> None:
    """Draws the plot."""
    plot(report.RESULTS / PICTURE)


if __name__ == "__main__":
    main()
