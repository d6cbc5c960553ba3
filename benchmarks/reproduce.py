"""The paper's comparison at large batch: NLCG, SGD and momentum on CIFAR-100.

    python -m benchmarks.reproduce --data-dir data --out runs/cifar100

Trains config `cifar100_resnet32` (batch 16384, 200 epochs) with each optimizer in turn,
then prints the table and plots the curves. One process, so that what XLA learns of the
GPU while it compiles the first run serves the others. Needs no command-line package.
"""

import argparse
import dataclasses
import pathlib

from benchmarks import optimizers, report
from benchmarks.config import named
from benchmarks.train import train


def main() -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description="NLCG, SGD and momentum on CIFAR-100.")
    parser.add_argument("--data-dir", type=pathlib.Path, default=pathlib.Path("data"))
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("runs/cifar100")
    )
    parser.add_argument(
        "--optimizers",
        nargs="+",
        default=["nlcg", "sgd", "momentum"],
        choices=list(optimizers.OPTIMIZERS),
    )
    parser.add_argument("--num-epochs", type=float, default=200.0)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    arguments = parser.parse_args()
    config = dataclasses.replace(
        named("cifar100_resnet32"),
        data_dir=arguments.data_dir,
        out=arguments.out,
        num_epochs=arguments.num_epochs,
    )
    rows = []
    for seed in arguments.seeds:
        for optimizer in arguments.optimizers:
            run = dataclasses.replace(config, optimizer=optimizer, seed=seed)
            rows.append(train(run))
            print(report.table(rows[-1:]), flush=True)
    print(report.table(rows))
    report.plot_curves(rows, arguments.out, arguments.out / "curves.png")
    print(f"Rows, curves and plot: {arguments.out}")


if __name__ == "__main__":
    main()
