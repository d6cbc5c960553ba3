"""The curvature search, with nothing tuned, against tuned learning rates on CIFAR-100.

    python -m benchmarks.curvature_cifar --data-dir data --out runs/curvature_cifar

trains ResNet-32 at three batch sizes for 50 epochs on a GPU, with `nlcg` at the best
of its learning rates and with `nlcg_curvature`, which has none.

    python -m benchmarks.curvature_cifar --reduced --out runs/curvature_cifar

is the same comparison for two CPU cores, with a small fully connected network, smaller
batches and fewer epochs: XLA's kernels for the curvature of a convolution are so slow
on CPUs that a residual network would see a fraction of an epoch.

The learning rate goes up in factors of two and is chosen by the accuracy on 5,000
held-out training images, with a seed of its own. The grid grows until its best lies
inside. The test set is read once a run, after training anew on all training images
with other seeds. The schedule is linear to zero; it changes nothing for
`nlcg_curvature`. Appends a row a run to `results.jsonl`, so that batch sizes can be run
one at a time (`--batch-sizes`; none for the table alone), and writes `table.md` from
all rows that are there.
"""

import argparse
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks import report
from benchmarks.config import Config, named
from benchmarks.sweep import run_or_recall

TUNED, UNTUNED = "nlcg", "nlcg_curvature"
# The grid to begin with, in units of the protocol's .1 per 128 images.
GRID = tuple(2.0**k for k in range(-4, 1))
NUM_VALIDATION = 5000
TUNING_SEED = 100
MICROBATCH = 4096


def settings(reduced: bool) -> tuple[Config, tuple[int, ...]]:
    """What all runs have in common, and the batch sizes."""
    base = dataclasses.replace(named("cifar100_resnet32"), schedule="linear")
    if not reduced:
        return dataclasses.replace(base, num_epochs=50.0), (1024, 4096, 16384)
    small = dataclasses.replace(
        base, model="mlp", augment=False, num_devices=1, num_epochs=6.0
    )
    return small, (128, 512, 2048)


def tune(score: Callable[[float], float], grid: Sequence[float]) -> float:
    """The point of a geometric grid with the highest score.

    Args:
      score: what is to be highest.
      grid: ascending points, at least two; the grid goes on at an end where the best
        is, with the same ratio, until it is not there any more.
    """
    scores = {point: score(point) for point in grid}
    ratio = grid[1] / grid[0]
    while True:
        best = max(scores, key=lambda point: scores[point])
        if best == max(scores):
            point = best * ratio
        elif best == min(scores):
            point = best / ratio
        else:
            return best
        scores[point] = score(point)


def validation_accuracy(base: Config, rate: float) -> float:
    """Accuracy on the held-out images; 0 if the run diverged."""
    row = run_or_recall(
        dataclasses.replace(
            base,
            optimizer=TUNED,
            learning_rate=rate,
            seed=TUNING_SEED,
            num_validation=NUM_VALIDATION,
        )
    )
    if row["status"] != "finished":
        return 0.0
    return row["validation_accuracy"]


def compare(base: Config, seeds: Sequence[int]) -> None:
    """Tunes, then trains both with every seed."""
    unit = 0.1 * base.batch_size / 128
    grid = [unit * factor for factor in GRID]
    rate = tune(functools.partial(validation_accuracy, base), grid)
    for seed in seeds:
        tuned = dataclasses.replace(base, learning_rate=rate, seed=seed)
        for optimizer in TUNED, UNTUNED:
            run_or_recall(dataclasses.replace(tuned, optimizer=optimizer))


def table(rows: Sequence[report.Row]) -> str:
    """A Markdown table: test accuracy at each batch size, and what it took."""
    lines = []
    for batch_size in sorted({row["config"]["batch_size"] for row in rows}):
        of = [row for row in rows if row["config"]["batch_size"] == batch_size]
        trials = sum(row["config"]["num_validation"] > 0 for row in of)
        for name in TUNED, UNTUNED:
            runs = [
                row
                for row in of
                if row["config"]["optimizer"] == name
                and not row["config"]["num_validation"]
            ]

            def cell(field, form, scale=1.0, runs=runs):
                # A run that diverged has no test accuracy.
                values = [float(row.get(field, "nan")) for row in runs]
                values = scale * np.array(values)
                spread = f" ± {values.std(ddof=1):{form}}" if len(values) > 1 else ""
                return f"{values.mean():{form}}{spread}"

            tuned = name == TUNED
            lines.append(
                (
                    f"{batch_size:,}",
                    name,
                    f"{runs[0]['learning_rate']:g}" if tuned else "none",
                    str(trials if tuned else 0),
                    cell("test_accuracy", ".1f", 100.0),
                    cell("train_loss", ".3f"),
                    f"{np.mean([row['gradient_equivalents'] for row in runs]):.0f}",
                    f"{np.mean([row['seconds'] for row in runs]):.0f}",
                )
            )
    header = "batch", "optimizer", "learning rate", "tuning runs", "test accuracy %"
    header += "training loss", "cost in gradients", "seconds"
    first = rows[0]["config"]
    seeds = {row["config"]["seed"] for row in rows} - {TUNING_SEED}
    return (
        f"{first['model']} on {first['dataset']}, {first['num_epochs']:g} epochs, mean "
        f"± standard deviation over {len(seeds)} seeds.\n\n"
        f"{report.markdown(header, lines)}\n"
    )


def main() -> None:
    """Runs the comparison and writes the table."""
    parser = argparse.ArgumentParser(description="Curvature search on CIFAR-100.")
    parser.add_argument("--data-dir", type=pathlib.Path, default=pathlib.Path("data"))
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("runs/curvature_cifar")
    )
    parser.add_argument("--reduced", action="store_true", help="for a CPU")
    parser.add_argument("--batch-sizes", nargs="*", type=int)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    arguments = parser.parse_args()
    base, batch_sizes = settings(arguments.reduced)
    if arguments.batch_sizes is not None:
        batch_sizes = arguments.batch_sizes
    for batch_size in batch_sizes:
        compare(
            dataclasses.replace(
                base,
                data_dir=arguments.data_dir,
                out=arguments.out,
                batch_size=batch_size,
                num_microbatches=max(1, batch_size // MICROBATCH),
            ),
            arguments.seeds,
        )
    text = table(report.load(arguments.out / "results.jsonl"))
    (arguments.out / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
