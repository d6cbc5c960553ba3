"""The same epochs at a larger batch: sweeps at two batch sizes side by side.

    python -m benchmarks.growing_batch

draws `benchmarks/results/growing_batch/accuracy.png` from the rows of the sweeps in
`SWEEPS`: test accuracy of what was chosen at each batch size, tuned anew there.
"""

import pathlib

import numpy as np

from benchmarks import report, sweep_report

RESULTS = pathlib.Path(__file__).parent / "results"
PICTURE = "growing_batch/accuracy.png"
NUM_EPOCHS = 4
# The sweeps at each batch size, by network; the largest batch last.
SWEEPS = {
    "ResNet-8": ("sweep_cifar100_16x16", "sweep_cifar100_16x16_b8192"),
    "Transformer": ("sweep_cifar100_16x16_vit", "sweep_cifar100_16x16_vit_b8192"),
}


def comparable(folders: tuple[str, ...]) -> list[report.Row]:
    """Final runs of `NUM_EPOCHS` epochs, of optimizers that every folder has.

    The best at the largest batch come first.
    """
    runs = [
        {
            name: rows
            for (name, num_epochs), rows in report.group_rows(
                sweep_report.tested(RESULTS / folder), "optimizer", "num_epochs"
            ).items()
            if num_epochs == NUM_EPOCHS
        }
        for folder in folders
    ]

    def at_the_largest(name: str) -> float:
        return float(np.mean([row["test_accuracy"] for row in runs[-1][name]]))

    names = sorted(set.intersection(*map(set, runs)), key=at_the_largest, reverse=True)
    return [row for name in names for groups in runs for row in groups[name]]


def num_trials(folder: str, num_epochs: float = NUM_EPOCHS) -> int:
    """How many trials every optimizer of a sweep had for runs of that length."""
    trials = report.load(RESULTS / folder / "trials" / "results.jsonl")
    groups = report.group_rows(trials, "optimizer", "num_epochs")
    (number,) = {len(rows) for (_, e), rows in groups.items() if e == num_epochs}
    return number


def plot(out: pathlib.Path) -> None:
    """Test accuracy against batch size, a panel a network."""
    figure, axes = report.new_figure(len(SWEEPS))
    for axis, (network, folders) in zip(axes, SWEEPS.items(), strict=True):
        rows = comparable(folders)
        report.draw_batch_sizes(axis, rows)
        steps = {row["config"]["batch_size"]: row["num_steps"] for row in rows}
        labels = [f"{size:,}\n{steps[size]} steps" for size in sorted(steps)]
        axis.set_xticks(range(len(labels)), labels)
        axis.set_title(f"{network}, {NUM_EPOCHS} epochs at every batch size")
    report.add_legend(figure, axes)
    report.save_figure(figure, out)


def main() -> None:
    """Draws the plot."""
    plot(RESULTS / PICTURE)


if __name__ == "__main__":
    main()
