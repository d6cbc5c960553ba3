"""What each choice in a tuned run is worth: one at a time is changed.

    python -m benchmarks.levers benchmarks/results/sweep_cifar100_16x16_b8192 \
        --num-epochs 4 --optimizers nlcg_muon muon --data-dir data

takes what a sweep chose for each optimizer, changes one setting of the run or one part
of the optimizer and trains anew, with seeds of their own. Accuracies are on the images
that the sweep held out; the test set is not read. Nothing is tuned again, so that this
says what depends on what, not what a part could do with settings of its own: that is
for sweeps.

Rows go to `<sweep>/levers/results.jsonl`, and a run that is there is not made again;
beside them the table `table.md` and the plot `levers.png`.
"""

import pathlib
from typing import Any

import numpy as np

from benchmarks import optimizers, report, sweep, sweep_choice, sweep_report, tuned_runs
from benchmarks.config import Config
from benchmarks.tuned_runs import AS_CHOSEN, held_out

Row = dict[str, Any]

# Of the steps: the middle of what sweeps try.
WARMUP = 0.1

# Images that batch statistics are of.
MICROBATCHES = 512, 2048

# Settings of optimizers that are 0 where nothing of the past is kept.
OF_THE_PAST = "largest_beta", "beta", "momentum"

# Other parts of conjugate directions: what is added to an optimizer's name, and what
# that changes.
PARTS = {
    "_pr": "beta by Polak-Ribière",
    "_no_rollback": "search takes nothing back",
    "_fr": "no search",
}


def levers(config: Config) -> dict[str, dict[str, Any]]:
    """Changes of a tuned run by name; those that would change nothing are left out."""
    rate = config.peak_learning_rate
    changes: dict[str, dict[str, Any]] = {
        "half the learning rate": {"learning_rate": rate / 2},
        "twice the learning rate": {"learning_rate": 2 * rate},
        "schedule of the paper": {"schedule": "reference"},
        "schedule linear": {"schedule": "linear"},
        "schedule cosine": {"schedule": "cosine"},
        "schedule constant": {"schedule": "constant"},
        f"warm-up {WARMUP:g}": {"warmup": WARMUP},
        "no weight decay": {"weight_decay": 0.0, "l2": 0.0},
        "decay in the loss, 1e-4": {"weight_decay": 0.0, "l2": 1e-4},
        **{
            f"label smoothing {share:g}": {"label_smoothing": share}
            for share in sweep.LABEL_SMOOTHING
        },
        "no averaging of weights": {"ema_decay": 0.0},
        **{
            f"batch statistics of {size:,}": {
                "num_microbatches": config.batch_size // size
            }
            for size in MICROBATCHES
            if config.batch_size % size == 0
        },
    }
    if optimizers.SETTINGS.get(config.optimizer) in OF_THE_PAST:
        changes["nothing of the past"] = {"optimizer_setting": 0.0}
    for ending, name in PARTS.items():
        if (other := config.optimizer + ending) in optimizers.OPTIMIZERS:
            changes[name] = {"optimizer": other}
    return {
        name: change
        for name, change in changes.items()
        if any(getattr(config, field) != value for field, value in change.items())
    }


def differences(rows: dict[str, list[Row]]) -> dict[str, np.ndarray]:
    """What changes bring against what was chosen, in percent of images, by seed.

    Runs of one seed start alike and see the same images in the same order, so that a
    difference within a seed is better known than either accuracy.
    """
    accuracies = {
        name: 100 * np.array([sweep_choice.accuracy(row) for row in same])
        for name, same in rows.items()
    }
    return {
        name: values - accuracies[AS_CHOSEN]
        for name, values in accuracies.items()
        if name != AS_CHOSEN
    }


def summarize(rows: dict[str, dict[str, list[Row]]], out: pathlib.Path) -> str:
    """Makes the table and the plot.

    Args:
      rows: by optimizer and change, `AS_CHOSEN` first.
      out: folder to write to.

    Returns:
      The table: held-out accuracy as chosen, then what changes bring, mean and
      deviation over seeds; what costs the most first.
    """
    by_optimizer = {name: differences(changes) for name, changes in rows.items()}
    of_change: dict[str, list[float]] = {}
    for changes in by_optimizer.values():
        for change, values in changes.items():
            of_change.setdefault(change, []).append(float(values.mean()))
    order = sorted(of_change, key=lambda change: np.mean(of_change[change]))
    lines = [
        (
            AS_CHOSEN,
            *(held_out(changes[AS_CHOSEN]) for changes in rows.values()),
        ),
        *(
            (change, *(_cell(changes.get(change)) for changes in by_optimizer.values()))
            for change in order
        ),
    ]
    table = tuned_runs.write_table(("changed", *rows), lines, rows, out)
    _plot(by_optimizer, order, out / "levers.png")
    return table


def _cell(values: np.ndarray | None) -> str:
    return "" if values is None else sweep_report.mean_and_spread(values / 100, "+")


def _plot(
    by_optimizer: dict[str, dict[str, np.ndarray]],
    order: list[str],
    path: pathlib.Path,
) -> None:
    """A line for each change; dots are seeds."""
    figure, (axis,) = report.new_figure(1)
    figure.set_size_inches(7.5, 1.2 + 0.24 * len(order))
    for place, (name, changes) in enumerate(by_optimizer.items()):
        style: dict[str, Any] = report.line_style(name) | {"linestyle": "none"}
        shift = 0.3 * (place - (len(by_optimizer) - 1) / 2)
        at = [order.index(change) + shift for change, v in changes.items() for _ in v]
        values = np.concatenate(list(changes.values()))
        axis.plot(values, at, markersize=4, alpha=0.8, **style)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(order)), order, fontsize=9)
    axis.invert_yaxis()
    axis.set_xlabel("accuracy on held-out images against what was chosen, %")
    report.add_legend(figure, [axis])
    report.save_figure(figure, path)


def main() -> None:
    """Makes the runs that are not there yet, and reports on all."""
    tuned_runs.study(
        "What each choice in a tuned run is worth.",
        "levers",
        lambda config: {AS_CHOSEN: {}, **levers(config)},
        summarize,
    )


if __name__ == "__main__":
    main()
