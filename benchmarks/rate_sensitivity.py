"""What a wrong learning rate costs: tuned runs again, with other rates.

    python -m benchmarks.rate_sensitivity benchmarks/results/sweep_cifar100_16x16 \
        --num-epochs 2 --data-dir data

takes what a sweep chose for each optimizer, multiplies the learning rate by powers of
the square root of ten and trains anew, with seeds of their own. Accuracies are on the
images that the sweep held out; the test set is not read. Everything else stays as it
was chosen. Measured from an optimizer's own best rate this says nothing of the ranges
that the sweep searched.

Rows go to `<sweep>/rates/results.jsonl`, and a run that is there is not made again;
beside them the table `table.md` and the plot `accuracy.png`.
"""

import pathlib
from typing import Any

import numpy as np

from benchmarks import report, sweep, tuned_runs
from benchmarks.config import Config

Row = dict[str, Any]

# Of the best accuracy.
SHARES = 0.9, 0.5

# In half decades.
EXPONENTS = (-4, -3, -2, -1, 0, 1, 2)


def factor(exponent: int) -> float:
    """What the chosen learning rate is multiplied by."""
    return 10 ** (exponent / 2)


def changes(config: Config) -> dict[int, dict[str, Any]]:
    """Learning rates in place of the one that was chosen, by exponent."""
    rates = {e: factor(e) * config.peak_learning_rate for e in EXPONENTS}
    return {e: {"learning_rate": sweep.rounded(rate)} for e, rate in rates.items()}


def summarize(rows: dict[str, dict[int, list[Row]]], out: pathlib.Path) -> str:
    """Makes the table and the plot.

    Args:
      rows: by optimizer and exponent, the exponents ascending.
      out: folder to write to.

    Returns:
      The table: mean accuracy at each factor, and how many decades of learning rates
      around the best keep a share of its accuracy, with a + if the scan ends before.
      The best first.
    """
    means = tuned_runs.means(rows)
    header = "optimizer", "learning rate"
    header += tuple(f"x {factor(exponent):.2g}" for exponent in EXPONENTS)
    header += tuple(f"decades at {share:g}" for share in SHARES)
    lines = []
    for name in means:
        lines.append(
            (
                name,
                f"{rows[name][0][0]['config']['learning_rate']:g}",
                *(f"{means[name][e]:.1f}" for e in EXPONENTS),
                *(_width(means[name], share) for share in SHARES),
            )
        )
    table = tuned_runs.write_table(header, lines, rows, out)
    _plot(means, out / "accuracy.png")
    return table


def stretch(curve: dict[int, float], share: float) -> tuple[float, float]:
    """The learning rates around the best with at least a share of its accuracy.

    Between neighbouring rates accuracy is taken to change linearly with the logarithm
    of the rate.

    Args:
      curve: accuracy by exponent, ascending.
      share: of the best accuracy.

    Returns:
      The ends, as decimal logarithms of factors; at most those of the curve.
    """
    at, values = np.array(list(curve)) / 2, np.array(list(curve.values()))
    best, least = int(values.argmax()), share * values.max()

    def end(side: np.ndarray, here: np.ndarray) -> float:
        below = np.flatnonzero(side < least)
        if not len(below):
            return float(here[-1])
        i = below[0]
        part = (side[i - 1] - least) / (side[i - 1] - side[i])
        return float(here[i - 1] + part * (here[i] - here[i - 1]))

    return end(values[best::-1], at[best::-1]), end(values[best:], at[best:])


def _width(curve: dict[int, float], share: float) -> str:
    low, high = stretch(curve, share)
    cut = low == min(curve) / 2 or high == max(curve) / 2
    return f"{high - low:.1f}{'+' * cut}"


def _plot(means: dict[str, dict[int, float]], path: pathlib.Path) -> None:
    """Accuracy against the factor: itself, and as a share of the best."""
    figure, (left, right) = report.new_figure(2)
    for name, curve in means.items():
        at = [factor(exponent) for exponent in curve]
        values = np.array(list(curve.values()))
        left.plot(at, values, **report.line_style(name))
        right.plot(at, 100 * values / values.max(), **report.line_style(name))
    left.set_ylabel("accuracy on held-out images, %")
    right.set_ylabel("share of the best, %")
    for axis in (left, right):
        axis.set_xscale("log")
        axis.set_xlabel("learning rate, relative to the one chosen")
        axis.set_ylim(bottom=0)
    report.add_legend(figure, [left])
    report.save_figure(figure, path)


def main() -> None:
    """Makes the runs that are not there yet, and reports on all."""
    tuned_runs.study("What a wrong learning rate costs.", "rates", changes, summarize)


if __name__ == "__main__":
    main()
