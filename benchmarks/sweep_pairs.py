"""Conjugate directions beside what they are built on: the sweeps on photographs."""

from collections.abc import Sequence

import numpy as np

from benchmarks import report, sweep_report

SWEEPS = (
    "sweep_cifar100_16x16",
    "sweep_cifar100_16x16_b8192",
    "sweep_cifar100_16x16_b16384",
    "sweep_cifar100_16x16_vit",
    "sweep_cifar100_16x16_vit_b8192",
    "sweep_tiny_imagenet_16x16_b8192",
)
# What is compared; of several sweeps of one optimizer, which differ in what they tune,
# the best.
PAIRS = (
    ("nlcg_muon", ("muon",)),
    ("nlcg_adam", ("adamw", "adamw_b1")),
    ("nlcg", ("nesterov",)),
)
_NAMES = {
    "cifar100_16x16": "CIFAR-100",
    "tiny_imagenet_16x16": "Tiny-ImageNet",
    "resnet8": "ResNet-8",
    "vit": "transformer",
}


def is_ahead(ours: Sequence[float], others: Sequence[float]) -> bool:
    """Whether the one mean is above the other by more than both deviations."""
    spread = np.std(ours, ddof=1) + np.std(others, ddof=1)
    return bool(np.mean(ours) - np.mean(others) > spread)


def accuracies(rows: Sequence[report.Row]) -> list[float]:
    """Test accuracies of runs in percent."""
    return [100 * row["test_accuracy"] for row in rows]


def table() -> str:
    """Test accuracy in percent, mean and deviation over seeds, of every pair.

    The one that `is_ahead` of the other is bold.
    """
    tested = [sweep_report.final_runs(report.RESULTS / folder) for folder in SWEEPS]
    lines = []
    for of_sweep in tested:
        by_length = report.group_rows(of_sweep, "num_epochs")
        for _, rows in sorted(by_length.items()):
            first = rows[0]
            config = first["config"]
            runs = {
                name: r for (name,), r in report.group_rows(rows, "optimizer").items()
            }
            cells = [cell for pair in PAIRS for cell in _pair(runs, *pair)]
            what = f"{_NAMES[config['dataset']]}, {_NAMES[config['model']]}"
            size = f"{config['batch_size']:,}"
            lines.append((what, size, f"{first['num_steps']:,}", *cells))
    header = "images and network", "batch", "steps"
    header += tuple(name for ours, others in PAIRS for name in (ours, others[0]))
    every = [row for of_sweep in tested for row in of_sweep]
    return f"{report.markdown(header, lines)}\n\n({report.circumstances(every)})\n"


def _pair(
    runs: dict[str, list[report.Row]], name: str, others: tuple[str, ...]
) -> tuple[str, str]:
    ours = runs.get(name, [])
    ran = [runs[other] for other in others if other in runs]
    theirs = max(ran, key=lambda rows: np.mean(accuracies(rows)), default=[])
    return _cell(ours, theirs), _cell(theirs, ours)


def _cell(rows: list[report.Row], others: list[report.Row]) -> str:
    if not rows:
        return ""
    text = sweep_report.accuracy_and_spread(rows)
    bold = others and is_ahead(accuracies(rows), accuracies(others))
    return f"**{text}**" if bold else text
