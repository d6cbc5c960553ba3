"""How much of the past is best: tuned runs again, with more of it and with less.

    python -m benchmarks.past_sensitivity \
        benchmarks/results/sweep_cifar100_16x16_b8192_constant \
        --num-epochs 4 --optimizers nlcg_muon muon --data-dir data

takes what a sweep chose for each optimizer and trains anew, with seeds of their own,
at other bounds on beta or weights of the past, lower ones than the sweep tried among
them. Each has its own best learning rate, so that every one is tried at several.
Accuracies are on the images that the sweep held out; the test set is not read.
Everything else stays as it was chosen. `--shares` and `--factors` are for fewer points
than these, or others.

Rows go to `<sweep>/past/results.jsonl`, and a run that is there is not made again;
beside them the table `table.md` and the plot `accuracy.png`.
"""

import argparse
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

from benchmarks import levers, optimizers, report, sweep, tuned_runs
from benchmarks.config import Config

Row = dict[str, Any]
# A share of the past, and what the chosen learning rate is multiplied by.
Point = tuple[float, float]

SHARES = 0.5, 0.65, 0.8, 0.9
FACTORS = 0.5, 1.0, 2.0, 4.0


def changes(
    config: Config,
    shares: Sequence[float] = SHARES,
    factors: Sequence[float] = FACTORS,
) -> dict[Point, dict[str, Any]]:
    """Shares of the past and learning rates in place of those that were chosen."""
    if optimizers.SETTINGS.get(config.optimizer) not in levers.OF_THE_PAST:
        raise SystemExit(
            f"{config.optimizer} has no setting for the past: leave it out by "
            "--optimizers"
        )
    rates = {f: sweep.rounded(f * config.peak_learning_rate) for f in factors}
    return {
        (share, f): {"optimizer_setting": share, "learning_rate": rates[f]}
        for share in shares
        for f in factors
    }


def summarize(rows: dict[str, dict[Point, list[Row]]], out: pathlib.Path) -> str:
    """Makes the table and the plot.

    Args:
      rows: by optimizer, share of the past and factor.
      out: folder to write to.

    Returns:
      The table: a line for each optimizer and share, the optimizer with the highest
      mean first; its highest mean is bold.
    """
    means = tuned_runs.means(rows)
    shares, factors = _axes(means)
    header = "optimizer", "learning rate", "of the past", "which is"
    header += tuple(f"x {factor:g}" for factor in factors)
    lines = []
    for name in means:
        rate = rows[name][shares[0], 1][0]["config"]["learning_rate"]
        for share in shares:
            of_share = [means[name][share, factor] for factor in factors]
            lines.append(
                (
                    name,
                    f"{rate:g}",
                    optimizers.SETTINGS[name],
                    f"{share:g}",
                    *(_cell(v, max(means[name].values())) for v in of_share),
                )
            )
    table = tuned_runs.write_table(header, lines, rows, out)
    _plot(means, out / "accuracy.png")
    return table


def _axes(
    means: dict[str, dict[Point, float]],
) -> tuple[Sequence[float], Sequence[float]]:
    """The shares and the factors that were tried."""
    shares, factors = zip(*next(iter(means.values())), strict=True)
    return sorted({*shares}), sorted({*factors})


def _cell(mean: float, best: float) -> str:
    return f"**{mean:.2f}**" if mean == best else f"{mean:.2f}"


def _plot(means: dict[str, dict[Point, float]], path: pathlib.Path) -> None:
    """The best rate of each share of the past, and the best share at each rate."""
    figure, (left, right) = report.new_figure(2)
    shares, factors = _axes(means)
    for name, grid in means.items():
        style = report.line_style(name)
        best = [max(grid[share, factor] for factor in factors) for share in shares]
        left.plot(shares, best, **style)
        best = [max(grid[share, factor] for share in shares) for factor in factors]
        right.plot(factors, best, **style)
    left.set_xlabel("bound on beta, or weight of the past")
    left.set_ylabel("best accuracy on held-out images, %")
    right.set_xlabel("learning rate, relative to the one chosen")
    right.set_xscale("log", base=2)
    right.set_xticks(factors, [f"x {factor:g}" for factor in factors])
    right.sharey(left)
    left.autoscale(axis="y")
    report.add_legend(figure, [left])
    report.save_figure(figure, path)


def main() -> None:
    """Makes the runs that are not there yet, and reports on all."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--shares", nargs="+", type=float, default=SHARES)
    options.add_argument(
        "--factors", nargs="+", type=float, default=FACTORS, help="1 is always there"
    )
    chosen, _ = options.parse_known_args()
    factors = sorted({1.0, *chosen.factors})
    tuned_runs.study(
        "How much of the past is best.",
        "past",
        functools.partial(changes, shares=chosen.shares, factors=factors),
        summarize,
        [options],
    )


if __name__ == "__main__":
    main()
