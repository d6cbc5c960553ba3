"""Tables and plots from result rows.

    python -m benchmarks.report runs/results.jsonl --out runs/curves.png

prints a table of the runs in a file of rows and plots their training curves.
"""

import argparse
import json
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.config import FREE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]

# Colours of Okabe and Ito, told apart by colour-blind readers too; markers and dashes
# tell the lines apart in gray. Only kinds of NLCG are red.
STYLES = {
    "nlcg": ("#D55E00", "o", "-"),
    "nlcg_online": ("#D55E00", "s", ":"),
    "nlcg_pr": ("#D55E00", "v", "--"),
    "ml_ncg": ("#E69F00", "s", "--"),
    "nlcg_hutchinson": ("#CC79A7", "h", "--"),
    "nlcg_gnb": ("#56B4E9", "p", "--"),
    "nlcg_curvature": ("#009E73", "d", "-"),
    "nlcg_adam": ("#D55E00", "X", "-."),
    "nlcg_muon": ("#D55E00", "*", "-"),
    "nlcg_muon_nesterov": ("#D55E00", "*", "--"),
    # Parts of NLCG.
    "nlcg_fr": ("#009E73", "d", "-"),
    "nlcg_fr_step": ("#009E73", "s", ":"),
    "nlcg_fr_bfgs": ("#E69F00", "P", "--"),
    "nlcg_no_rollback": ("#E69F00", "v", ":"),
    "nlcg_constant": ("#0072B2", "^", "-"),
    "nlcg_adam_fr": ("#CC79A7", "d", "--"),
    "nlcg_adam_constant": ("#56B4E9", "<", "-."),
    "nlcg_muon_constant": ("#E69F00", "*", "--"),
    "nlcg_muon_pr": ("#CC79A7", "*", "--"),
    "steepest_muon": ("#009E73", "*", ":"),
    "sgd_step": ("#000000", "1", ":"),
    "sgd": ("#000000", "v", "-"),
    "momentum": ("#0072B2", "^", "-"),
    "nesterov": ("#0072B2", "D", ":"),
    "rmsprop": ("#009E73", "P", "-"),
    "adamw": ("#CC79A7", "X", "-"),
    "adamw_b1": ("#CC79A7", "+", "--"),
    "lamb": ("#56B4E9", "<", "--"),
    "lars": ("#56B4E9", ">", "-"),
    "muon": ("#7A6A00", "*", "-"),
    "schedule_free": ("#000000", "1", ":"),
}
# What curves can be drawn against, and how it is called.
AXES = {
    "step": "step",
    "gradient_equivalents": "cost in gradients of a mini-batch",
    "seconds": "seconds",
}
RESULTS = pathlib.Path(__file__).parent / "results"
OTHER_STYLE = ("#888888", ".", "-")


def load(path: str | pathlib.Path) -> list[Row]:
    """Reads a file with one JSON object a line; a line that was cut off is left out."""
    rows = []
    for number, line in enumerate(pathlib.Path(path).read_text().splitlines(), 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            print(f"{path}:{number}: left out, it is not whole ({error})")
    return rows


def num_steps(rows: Iterable[Row]) -> int:
    """Steps of runs that are alike, some of which may have ended early."""
    return max(row["num_steps"] for row in rows)


def load_curve(row: Row, folder: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the metrics of each step of a run; `folder` is that of the rows."""
    lines = load(pathlib.Path(folder) / row["curve"])
    # Every step has the same metrics; NaN and infinity are stored by name.
    return {
        name: np.array([float(line[name]) for line in lines])
        for name in (lines[0] if lines else ())
    }


def group_rows(rows: Iterable[Row], *names: str) -> dict[tuple, list[Row]]:
    """Groups rows by settings, in order of appearance."""
    groups = {}
    for row in rows:
        key = tuple(row["config"][name] for name in names)
        groups.setdefault(key, []).append(row)
    return groups


def _group_by_label(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Groups rows that differ in the seed alone, by optimizer and what else varies."""
    names = "dataset", "model", "batch_size", "learning_rate", "schedule", "num_epochs"
    varying = [n for n in names if len({row["config"][n] for row in rows}) > 1]
    groups = {}
    for (optimizer, *values), group in group_rows(rows, "optimizer", *varying).items():
        parts = [f"{n} {v}" for n, v in zip(varying, values, strict=True)]
        for apart, same in _seeds(group):
            groups[", ".join([optimizer, *parts, *apart])] = same
    return groups


def _seeds(rows: Sequence[Row]) -> list[tuple[list[str], list[Row]]]:
    """Rows that differ in the seed alone, behind what sets them apart from others."""
    shared = set.intersection(*(set(row["config"]) for row in rows))
    varying = [
        name
        for name in rows[0]["config"]
        if name in shared.difference(FREE, ["seed"])
        and len({str(row["config"][name]) for row in rows}) > 1
    ]
    return [
        ([f"{n} {v}" for n, v in zip(varying, values, strict=True)], same)
        for values, same in group_rows(rows, *varying).items()
    ]


def _accuracies(rows: Iterable[Row], split: str) -> np.ndarray:
    """Accuracies in percent; a run that diverged counts with what it has, or as 0."""
    values = [float(row.get(f"{split}_accuracy", 0.0)) for row in rows]
    return 100 * np.nan_to_num(np.array(values))


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Lays out a table that is readable as text and is Markdown."""
    table = [list(header), *(list(line) for line in lines)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    text = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True))
        for line in table
    ]
    text.insert(1, "|-" + "-|-".join("-" * w for w in widths))
    return "\n".join(line + (" |" if i != 1 else "-|") for i, line in enumerate(text))


def circumstances(rows: Sequence[Row]) -> str:
    """Says where rows come from: devices, versions, seeds, dates."""

    def every(what: Callable[[Row], str], between: str = " and ") -> str:
        return between.join(sorted({what(row) for row in rows}))

    def device(row: Row) -> str:
        of_cpu = row["platform"] == "cpu"
        return f"{row['cpu_count']} CPU cores" if of_cpu else row["device"]

    seeds = sorted({row["config"]["seed"] for row in rows})
    seeds = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]}-{seeds[-1]}"
    versions = ", ".join(
        f"{package} {every(lambda row, name=package: row['versions'][name])}"
        for package in ("jax", "optax")
    )
    dates = sorted({row["date"][:10] for row in rows})
    dates = " to ".join(dates[:1] + dates[1:][-1:])
    return f"{every(device)}, {versions}, {seeds}, {dates}"


def table(rows: Sequence[Row]) -> str:
    """Makes a table of runs; runs that differ in the seed alone share a line."""
    header = "data", "model", "batch", "optimizer", "learning rate", "schedule"
    header += "steps", "runs", "evaluated on", "accuracy %", "images/s", "device"
    lines = []
    names = "dataset", "model", "batch_size", "optimizer", "schedule", "num_epochs"
    for key, group in group_rows(rows, *names).items():
        by_rate = {}
        for row in group:
            by_rate.setdefault((row["learning_rate"], row["num_steps"]), []).append(row)
        for (rate, steps), apart, same in (
            (key, *part) for key, some in by_rate.items() for part in _seeds(some)
        ):
            split = "validation" if same[0]["config"]["num_validation"] else "test"
            if any("test_accuracy" in row for row in same):
                split = "test"
            values = _accuracies(same, split)
            if same[0]["config"]["eval_statistics"] == "running":
                split += ", running statistics"
            accuracy = f"{values.mean():.2f}"
            if len(values) > 1:
                accuracy += f" ± {values.std(ddof=1):.2f}"
            diverged = sum(row["status"] == "diverged" for row in same)
            if diverged:
                accuracy += f" ({diverged} diverged)"
            speed = [r["images_per_second"] for r in same if "images_per_second" in r]
            dataset, model, batch_size, optimizer, schedule, _ = key
            optimizer = ", ".join([optimizer, *apart])
            lines.append(
                (
                    *(dataset, model, str(batch_size), optimizer, f"{rate:g}"),
                    *(schedule, str(steps), str(len(same)), split, accuracy),
                    f"{np.mean(speed):.0f}" if speed else "",
                    same[0]["device"],
                )
            )
    return markdown(header, lines)


def batch_size_table(rows: Sequence[Row]) -> str:
    """Makes a table of accuracy by optimizer and batch size, as the demo prints it."""
    sizes = sorted({row["config"]["batch_size"] for row in rows})
    lines = []
    for (optimizer,), of_optimizer in group_rows(rows, "optimizer").items():
        cells = []
        by_size = group_rows(of_optimizer, "batch_size")
        for size in sizes:
            group = by_size.get((size,), [])
            if not group:
                cells.append("")
                continue
            values = _accuracies(group, "test")
            rate, grid = group[0]["learning_rate"], group[0]["trials"]["learning_rate"]
            edge = "*" if rate in (min(grid), max(grid)) else ""
            cells.append(
                f"{values.mean():.1f} ± {values.std(ddof=1):.1f} @{rate:g}{edge}"
            )
        lines.append((optimizer, *cells))
    return markdown(("optimizer", *(f"batch {size}" for size in sizes)), lines)


# ------------------------------------------------------------------------------
#  Plots
# ------------------------------------------------------------------------------


def new_figure(columns: int) -> "tuple[Figure, list[Axes]]":
    """Makes a row of panels in the style of all our plots."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, columns, figsize=(5.2 * columns, 4.4), squeeze=False, layout="constrained"
    )
    for axis in axes[0]:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, linewidth=0.6)
    return figure, list(axes[0])


def line_style(optimizer: str) -> dict[str, Any]:
    """How an optimizer's line is drawn."""
    color, marker, dashes = STYLES.get(optimizer, OTHER_STYLE)
    width, order = (2.6, 3) if optimizer == "nlcg" else (1.5, 2)
    return {
        "color": color,
        "marker": marker,
        "linestyle": dashes,
        "linewidth": width,
        "zorder": order,
        "label": optimizer,
    }


def add_legend(figure: "Figure", axes: "Sequence[Axes]") -> None:
    """Puts one legend of what is drawn in panels below all of them."""
    handles = {}
    for axis in axes:
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.legend(
        handles.values(),
        handles,
        loc="outside lower center",
        ncols=5 if len(figure.axes) > 1 else 2,  # for which there is room
        frameon=False,
    )


def save_figure(figure: "Figure", out: str | pathlib.Path) -> None:
    """Writes a plot to a file and forgets it."""
    from matplotlib import pyplot

    pathlib.Path(out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)
    pyplot.close(figure)


def draw_batch_sizes(axis: "Axes", rows: Sequence[Row], **style: Any) -> None:
    """Draws mean test accuracy against batch size, with the spread over seeds.

    Args:
      axis: to draw on.
      rows: runs; their order is that of the lines, side by side.
      **style: of the lines, in place of the optimizers' own.
    """
    sizes = sorted({row["config"]["batch_size"] for row in rows})
    optimizers = group_rows(rows, "optimizer")
    for place, ((optimizer,), of_optimizer) in enumerate(optimizers.items()):
        # Side by side, so that the error bars do not hide each other.
        shift = 0.05 * (place - (len(optimizers) - 1) / 2)
        at, mean, spread = [], [], []
        for (size,), group in group_rows(of_optimizer, "batch_size").items():
            values = _accuracies(group, "test")
            at.append(sizes.index(size) + shift)
            mean.append(values.mean())
            spread.append(values.std(ddof=1))
        of_line = {"elinewidth": 1, "markersize": 5, **line_style(optimizer), **style}
        axis.errorbar(at, mean, yerr=spread, **of_line)
    axis.set_xticks(range(len(sizes)), [f"{size:,}" for size in sizes])
    axis.set_xlabel("batch size")
    axis.set_ylabel("test accuracy, %")


def _draw_curves(
    axis: "Axes", rows: Sequence[Row], folder, name: str, against: str = "step"
) -> None:
    """Draws a metric, the mean of runs that differ in the seed alone, against another.

    Long runs are smoothed over a hundredth of their steps, before what was measured.
    """
    for label, group in _group_by_label(rows).items():
        curves = [load_curve(row, folder) for row in group]
        length = min(len(curve[name]) for curve in curves)
        mean = np.mean([curve[name][:length] for curve in curves], axis=0)
        at = np.mean([curve[against][:length] for curve in curves], axis=0)
        mean *= 100 if name == "accuracy" else 1
        style = line_style(group[0]["config"]["optimizer"])
        style["label"] = label
        window = max(length // 100, 1)
        if window > 1:
            axis.plot(
                at, mean, color=style["color"], linewidth=0.6, alpha=0.3, zorder=1
            )
        box = np.full(window, 1 / window)
        smooth, middle = np.convolve(mean, box, "valid"), np.convolve(at, box, "valid")
        every = max(length // 8, 1)
        axis.plot(middle, smooth, markevery=every, markersize=5, **style)
    axis.set_xlabel(AXES[against])


def plot_demo(
    rows: Sequence[Row], folder: str | pathlib.Path, out: str | pathlib.Path
) -> None:
    """Plots accuracy against batch size, and training at the largest batch."""
    figure, (left, right) = new_figure(2)
    draw_batch_sizes(left, rows)
    seeds = len({row["config"]["seed"] for row in rows})
    left.set_title(
        f"Same number of epochs; mean and deviation of {seeds} seeds", fontsize=11
    )
    largest = max(row["config"]["batch_size"] for row in rows)
    of_largest = [row for row in rows if row["config"]["batch_size"] == largest]
    _draw_curves(right, of_largest, folder, "loss")
    right.set_yscale("log")
    right.set_ylabel("training loss with L2 penalty")
    right.set_title(f"Training at batch size {largest:,}", fontsize=11)
    add_legend(figure, [left])
    save_figure(figure, out)


def plot_curves(
    rows: Sequence[Row],
    folder: str | pathlib.Path,
    out: str | pathlib.Path,
    against: str = "step",
) -> None:
    """Plots training loss and accuracy against one of `AXES`, a line an optimizer."""
    figure, (left, right) = new_figure(2)
    _draw_curves(left, rows, folder, "loss", against)
    left.set_yscale("log")
    left.set_ylabel("training loss of each mini-batch, with L2 penalty")
    _draw_curves(right, rows, folder, "accuracy", against)
    right.set_ylabel("training accuracy of each mini-batch, %")
    handles, labels = right.get_legend_handles_labels()
    tested = _group_by_label(rows)
    for i, name in enumerate(labels):
        # Running statistics tell little of averaged weights: not for a headline.
        if all(
            "test_accuracy" in row and row["config"]["eval_statistics"] == "recomputed"
            for row in tested[name]
        ):
            labels[i] += f": {_accuracies(tested[name], 'test').mean():.1f} % on test"
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    save_figure(figure, out)


def main() -> None:
    """Prints the table of a file of rows and plots its curves."""
    parser = argparse.ArgumentParser(description="Tables and plots from result rows.")
    parser.add_argument("results", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, help="PNG with the curves")
    parser.add_argument("--against", choices=list(AXES), default="step")
    arguments = parser.parse_args()
    rows = load(arguments.results)
    print(table(rows))
    if arguments.out:
        folder = arguments.results.parent
        plot_curves(rows, folder, arguments.out, arguments.against)
        print(f"Plot: {arguments.out}")


if __name__ == "__main__":
    main()
