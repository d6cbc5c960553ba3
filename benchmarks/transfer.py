"""What settings that were tuned on one network do on another.

    python -m benchmarks.transfer benchmarks/results/sweep_cifar100_16x16_b16384 \
        --model resnet20 --data-dir data --out runs/transfer

Repeats the runs that tested what the sweep chose, with the same seeds, and changes
nothing but the network: what one gets who tunes a small network and trains a larger
one. Rows go to `<out>/results.jsonl`; a comparison that was stopped goes on where it
was. `table.md` has them beside the sweep's own.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import metrics, optimizers, report, sweep, sweep_choice, sweep_report
from benchmarks.config import Config


def carried(row: report.Row, model: str, **changes: object) -> Config:
    """The run of a row, with another network."""
    return dataclasses.replace(Config(**row["config"]), model=model, **changes)


def table(tuned: Sequence[report.Row], others: Sequence[report.Row]) -> str:
    """Test accuracy in percent by length of run, optimizer and network.

    The shortest runs first, and of one length the best on the last network.

    Args:
      tuned: runs with the network that the settings were tuned on.
      others: the same runs with others.
    """
    groups = report.group_rows([*tuned, *others], "num_epochs", "optimizer", "model")
    models = list(dict.fromkeys(model for *_, model in groups))
    on_last = [
        (num_epochs, name, rows)
        for (num_epochs, name, model), rows in groups.items()
        if model == models[-1]
    ]

    def order(item: tuple[float, str, list[report.Row]]) -> tuple[float, float, str]:
        num_epochs, name, rows = item
        accuracies = [row.get("test_accuracy", 0.0) for row in rows]
        return num_epochs, -float(np.mean(accuracies)), name

    lines = [
        (
            name,
            f"{rows[0]['num_steps']:,}",
            *(
                sweep_report.accuracy_and_spread(groups[num_epochs, name, model])
                if (num_epochs, name, model) in groups
                else ""
                for model in models
            ),
        )
        for num_epochs, name, rows in sorted(on_last, key=order)
    ]
    header = "optimizer", "steps", f"{models[0]}, tuned", *models[1:]
    return f"{report.markdown(header, lines)}\n\n({report.circumstances(others)})\n"


def _but_for_the_network(row: report.Row) -> dict[str, Any]:
    return {k: v for k, v in sweep.identity(row["config"]).items() if k != "model"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description="Tuned settings on another network.")
    parser.add_argument("sweep", type=pathlib.Path, help="folder of a sweep")
    parser.add_argument("--model", required=True)
    parser.add_argument("--num-epochs", type=float, help="of the sweep's runs")
    parser.add_argument("--optimizers", nargs="+", choices=list(optimizers.OPTIMIZERS))
    parser.add_argument("--data-dir", type=pathlib.Path, default=pathlib.Path("data"))
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("runs/transfer")
    )
    parser.add_argument("--no-progress", action="store_true")
    args = parser.parse_args(arguments)
    metrics.git_commit()  # as it is now, not when the runs end
    tuned = [
        row
        for row in sweep_choice.final_runs(args.sweep, args.num_epochs)
        if row["config"]["optimizer"] in (args.optimizers or optimizers.OPTIMIZERS)
    ]
    if not tuned:
        parser.error(f"{args.sweep} has tested no such runs")
    for row in tuned:
        config = carried(
            row,
            args.model,
            data_dir=args.data_dir,
            out=args.out,
            progress=not args.no_progress,
        )
        run = sweep.run_or_recall(config)
        accuracy = f"{100 * run.get('test_accuracy', float('nan')):.2f}"
        print(f"{config.optimizer} seed {config.seed}: {accuracy}", flush=True)
    # Rows of what the sweep chose before it went on may be there too.
    wanted = [_but_for_the_network(row) for row in tuned]
    others = report.load(args.out / "results.jsonl")
    text = table(tuned, [row for row in others if _but_for_the_network(row) in wanted])
    (args.out / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
