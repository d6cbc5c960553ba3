"""Chooses anew among the runs of a study of tuned runs, and tests what it chose.

    python -m benchmarks.choose_again \
        benchmarks/results/sweep_cifar100_16x16_b8192_constant/past --data-dir data

A study tries other settings around those that a sweep chose, as many for every
optimizer. For each of them the best few on held-out images, by the mean over the
study's seeds, are repeated there with further seeds; the one with the highest mean then
trains on the whole training set, with seeds of its own, and is tested.

Rows go to `<study>/repeats` and `<study>/final`, and a run that is there is not made
again; the table is `<study>/choice.md`.
"""

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import metrics, report, sweep, sweep_choice, sweep_report, tuned_runs

Row = dict[str, Any]


def best(rows: Sequence[Row], number: int) -> list[list[Row]]:
    """The runs of the best few settings, those with the highest mean first."""
    same = report.group_rows(rows, *sweep_choice.TUNED).values()
    return sorted(same, key=_mean, reverse=True)[:number]


def table(tested: Sequence[tuple[int, list[Row], list[Row]]]) -> str:
    """What was chosen, in percent, the highest mean on held-out images first.

    Args:
      tested: for each optimizer the number of settings tried, the runs of the one
        chosen on held-out images, and its tests.
    """
    lines = []
    for number, runs, tests in sorted(tested, key=lambda item: -_mean(item[1])):
        config = tests[0]["config"]
        lines.append(
            (
                config["optimizer"],
                f"{config['batch_size']:,}",
                f"{tests[0]['num_steps']:,}",
                str(number),
                f"{config['learning_rate']:g}",
                sweep_report.own_setting(config),
                tuned_runs.held_out(runs),
                sweep_report.accuracy_and_spread(tests),
            )
        )
    header = "optimizer", "batch", "steps", "settings", "learning rate", "own"
    header += "held out", "test"
    every = [row for _, _, tests in tested for row in tests]
    return f"{report.markdown(header, lines)}\n\n({report.circumstances(every)})\n"


def _mean(rows: Sequence[Row]) -> float:
    return float(np.mean(list(map(sweep_choice.accuracy, rows))))


def main(arguments: Sequence[str] | None = None) -> None:
    """Chooses and tests."""
    parser = argparse.ArgumentParser(description="The best of a study, tested.")
    parser.add_argument("study", type=pathlib.Path, help="folder of a study's rows")
    parser.add_argument("--num-repeated", type=int, default=3, help="best settings")
    parser.add_argument("--repeat-seeds", nargs="+", type=int, default=[6, 7])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--data-dir", type=pathlib.Path, default=pathlib.Path("data"))
    args = parser.parse_args(arguments)
    metrics.git_commit()  # as it is now, not when the runs end
    path = args.study / "results.jsonl"
    if not path.exists():
        parser.error(f"{args.study} is no folder of a study: there is no {path}")
    if args.num_repeated < 1:
        parser.error(f"--num-repeated must be positive, got {args.num_repeated}")
    rows = report.load(path)
    used = {row["config"]["seed"] for row in rows} | {sweep.TUNING_SEED}
    for option, seeds in (
        ("--repeat-seeds", args.repeat_seeds),
        ("--seeds", args.seeds),
    ):
        if both := used & {*seeds}:
            parser.error(
                f"{option} must not have {min(both)}: settings are chosen by it"
            )
        used |= {*seeds}

    def again(runs, seeds, part, **changes):
        configs = tuned_runs.changed(
            runs[0], changes, seeds, args.data_dir, args.study / part
        )
        return list(map(sweep.run_or_recall, configs))

    tested = []
    for (optimizer,), of_one in report.group_rows(rows, "optimizer").items():
        repeated = [
            [*runs, *again(runs, args.repeat_seeds, "repeats")]
            for runs in best(of_one, args.num_repeated)
        ]
        chosen = max(repeated, key=_mean)
        tests = again(chosen, args.seeds, "final", num_validation=0)
        number = len(report.group_rows(of_one, *sweep_choice.TUNED))
        tested.append((number, chosen, tests))
        print(f"{optimizer}: {sweep_report.accuracy_and_spread(tests)} %", flush=True)
    text = table(tested)
    (args.study / "choice.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
