"""Tables of the page of results that no command writes to a file of its own."""

import json
from collections.abc import Mapping
from typing import Any

from benchmarks import report

FOLDER = report.RESULTS


def demo() -> str:
    """What the picture of the demo shows, as numbers."""
    rows = report.load(FOLDER / "demo/results.jsonl")
    return f"""\
Test accuracy in percent, mean ± standard deviation over seeds; behind the @ the
learning rate, with a * where it is at an end of its grid:

{report.batch_size_table(rows)}
"""


def paper_protocol() -> str:
    """How far training comes with the paper's settings."""
    rows = report.load(FOLDER / "cifar100_resnet32/results.jsonl")
    config = rows[0]["config"]
    lines = [
        (
            row["config"]["optimizer"],
            f"{row['train_loss']:.2f}",
            f"{100 * row['train_accuracy']:.1f}",
            f"{100 * row['test_accuracy']:.1f}",
            f"{row['images_per_second']:,.0f}",
        )
        for row in rows
    ]
    header = "optimizer", "training loss", "training accuracy %"
    header += "test accuracy %", "images/s"
    (rate,) = {row["learning_rate"] for row in rows}
    caveat = ""
    if {row["config"]["eval_statistics"] for row in rows} == {"running"}:
        caveat = """
The test accuracies of these runs say little: the averaged weights were evaluated with
running batch statistics, which lag behind weights that move this fast. The trainer now
evaluates with statistics of the averaged weights themselves; the runs are to be
repeated with that.
"""
    return f"""\
ResNet-32 at batch {config["batch_size"]:,}, the paper's schedule and learning rate,
{rate:g}, for all, {rows[0]["num_steps"]} steps; nothing is tuned, as in the paper.
`ml_ncg` is the authors' code to the letter.

{report.markdown(header, lines)}
{caveat}
({report.circumstances(rows)}; one run each.)
"""


def circumstances(rows: Mapping[str, Any]) -> str:
    """Where a result file with one environment comes from."""
    device = rows["device"]
    if rows["platform"] == "cpu":
        device = f"{rows['cpu_count']} CPU cores"
    versions = ", ".join(f"{p} {rows['versions'][p]}" for p in ("jax", "optax"))
    return f"({device}, {versions}, {rows['date'][:10]}.)\n"


def curvature_cost() -> str:
    """What estimators of curvature cost, against a gradient."""
    results = json.loads((FOLDER / "curvature_cost/cpu-resnet8-b64.json").read_text())
    header = "one step", "operations", "seconds", "memory"
    header += (f"operations, one step in {results['refresh_every']}",)
    lines = [
        (
            row["program"],
            f"{row['flops_ratio']:.2f}",
            f"{row['seconds_ratio']:.2f}",
            f"{row['temporary_bytes_ratio']:.2f}",
            f"{row['flops_averaged']:.2f}",
        )
        for row in results["rows"]
    ]
    return (
        f"{results['model']} with batch norm, batch {results['batch_size']}, as "
        f"multiples of one value and gradient:\n\n{report.markdown(header, lines)}\n\n"
        f"{circumstances(results)}"
    )


def curvature_search() -> str:
    """The search without a learning rate, against tuned rates."""
    results = json.loads((FOLDER / "curvature_digits/results.json").read_text())
    header = "batch", "labels at random", "step", "learning rate"
    header += "test accuracy %", "training loss"
    lines = [
        (
            str(row["batch_size"]),
            f"{100 * row['label_noise']:.0f} %",
            row["name"],
            f"{row['learning_rate']:g}, {row['schedule']}" if row["tuned"] else "none",
            f"{100 * row['test_accuracy']:.1f} ± {100 * row['test_accuracy_std']:.1f}",
            f"{row['train_loss']:.3f}",
        )
        for row in results["rows"]
        if not row["name"].startswith("refresh")
    ]
    trials = len(results["rates"]) * len(results["schedules"])
    seeds = len(results["rows"][0]["seeds"])
    return (
        f"Handwritten digits, {results['num_epochs']} epochs. A tuned learning rate is "
        f"the best of {trials} settings on a validation set; mean ± standard deviation "
        f"over {seeds} other seeds:\n\n{report.markdown(header, lines)}\n\n"
        f"{circumstances(results)}"
    )
