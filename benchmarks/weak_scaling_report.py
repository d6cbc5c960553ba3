"""Tables and plots of what training steps send: `benchmarks.weak_scaling`'s rows."""

import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

from benchmarks import collectives
from benchmarks.scaling_models import MODELS

Row = dict[str, Any]

EXTRAPOLATED = (256, 1024, 4096)
LAYOUTS = "data parallel", "fully sharded"


def extrapolate(rows: list[Row]) -> list[Row]:
    """Rows for more devices, by the ring's formulas from the program for the most.

    They hold where what is reduced and gathered no longer depends on the number of
    devices. Each row says whether: whether the formulas give the bytes of the programs
    for a quarter and for half as many devices too.

    Args:
        rows: what `measure` returns, for all models and numbers of devices.

    Returns:
        Further rows, with `holds`; where it is false their own bytes mean nothing.
    """
    most = max(row["num_devices"] for row in rows)
    series = "model", "layout", "optimizer"

    def sent(row, num_devices):
        return sum(
            collectives.Collective(kind, (), total["bytes"]).sent(num_devices)
            for kind, total in row["collectives"].items()
        )

    further = []
    for base in (row for row in rows if row["num_devices"] == most):
        alike = [
            row
            for row in rows
            if all(row[name] == base[name] for name in series)
            and row["num_devices"] >= most // 4
        ]
        holds = all(
            math.isclose(sent(base, row["num_devices"]), row["sent_bytes"])
            for row in alike
        )
        for num_devices in EXTRAPOLATED:
            more = {"num_devices": num_devices, "computed": True, "holds": holds}
            further.append(base | more | {"sent_bytes": sent(base, num_devices)})
    return further


def select(
    rows: list[Row], model: str, layout: str
) -> list[tuple[int, dict[str, Row]]]:
    """Rows of a model and layout: for each number of devices, those by optimizer."""
    chosen: dict[int, dict[str, Row]] = {}
    for row in rows:
        if (row["model"], row["layout"]) == (model, layout):
            chosen.setdefault(row["num_devices"], {})[row["optimizer"]] = row
    return sorted(chosen.items())


def table(rows: list[Row]) -> list[str]:
    """Lines of Markdown."""
    lines = [
        "| model | layout | devices | operations, SGD | AdamW adds | NLCG adds | "
        "bytes sent by a device, SGD | AdamW adds | NLCG adds |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for model in MODELS:
        for layout in LAYOUTS:
            for num_devices, by_optimizer in select(rows, model, layout):
                sgd = by_optimizer["sgd"]
                others = by_optimizer["adamw"], by_optimizer["nlcg"]
                mark = " (computed)" if "computed" in sgd else ""
                cells = [model, layout, f"{num_devices}{mark}"]
                if not sgd.get("fits", True):
                    cells += ["does not fit"] * 6
                elif sgd.get("holds", True):
                    cells.append(f"{_count(sgd):,}")
                    cells += [_more(_count, row, sgd) for row in others]
                    cells.append(f"{_sent(sgd):,.0f}")
                    cells += [_more(_sent, row, sgd) for row in others]
                else:
                    cells += ["-"] * 4
                    cells += [_more(_sent, row, sgd) for row in others]
                lines.append("| " + " | ".join(cells) + " |")
    return lines


def _count(row: Row) -> int:
    return sum(total["count"] for total in row["collectives"].values())


def _sent(row: Row) -> float:
    return row["sent_bytes"]


def _more(what: Callable[[Row], float], row: Row, sgd: Row) -> str:
    """What a step has more of than SGD's."""
    if not row.get("fits", True):
        return "does not fit"
    return f"{what(row) - what(sgd):,.0f}"


def plot(rows: list[Row], path: pathlib.Path) -> None:
    """Bytes that a device sends in a step, and what NLCG adds to them."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    titles = {"resnet50": "ResNet-50", "transformer": "transformer, 1.0 B parameters"}
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True)
    for panel, model in zip(axes, MODELS, strict=True):
        for colour, layout in zip(("tab:blue", "tab:orange"), LAYOUTS, strict=True):
            series = [pair for pair in select(rows, model, layout) if pair[0] > 1]
            numbers = [number for number, _ in series]
            sgd = [
                row["sgd"]["sent_bytes"] if row["sgd"].get("holds", True) else math.nan
                for _, row in series
            ]
            added = [
                row["nlcg"]["sent_bytes"] - row["sgd"]["sent_bytes"]
                for _, row in series
            ]
            panel.plot(numbers, sgd, color=colour, label=f"SGD, {layout}")
            if any(added):
                panel.plot(
                    numbers, added, "--", color=colour, label=f"NLCG adds, {layout}"
                )
            compiled = [
                i for i, (_, row) in enumerate(series) if "computed" not in row["sgd"]
            ]
            for values in (sgd, added):
                panel.plot(
                    [numbers[i] for i in compiled if values[i]],
                    [values[i] for i in compiled if values[i]],
                    "o",
                    color=colour,
                    markersize=4,
                )
        panel.set(xscale="log", yscale="log", title=titles[model], xlabel="devices")
        panel.set_xticks([2, 8, 32, 256, 1024, 4096], [2, 8, 32, 256, 1024, 4096])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    axes[0].set(ylabel="bytes sent by a device in a step", ylim=(30, 2e11))
    axes[1].legend(fontsize=8, loc="center right")
    figure.suptitle(
        "Dots: compiled; lines beyond: computed. Data parallel, NLCG adds nothing.",
        fontsize=9,
    )
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def write(out: pathlib.Path) -> None:
    """Writes the table of `results.json`, and for virtual devices the plot."""
    record = json.loads((out / "results.json").read_text())
    rows = record["rows"]
    made = f"on {record['date'][:10]} with jax {record['versions']['jax']}"
    if "compiled_for" in record:
        targets = ", ".join(f"`{target}`" for target in record["compiled_for"])
        caption = (
            f"Compiled {made} and libtpu {record['versions']['libtpu']} for, not run "
            f"on, {record['device']} ({targets}). What `does not fit` needs more "
            "memory than a chip has."
        )
    else:
        most = max(row["num_devices"] for row in rows)
        caption = (
            f"As compiled {made} for {most} and fewer devices of the kind "
            f"`{record['device']}`; beyond them computed, where the same formulas give "
            f"the bytes of the programs for {most // 4} and {most // 2} devices; a "
            "dash elsewhere."
        )
        rows = rows + extrapolate(rows)
        plot(rows, out / "bytes.png")
    (out / "table.md").write_text("\n".join([caption, "", *table(rows)]) + "\n")
