"""Conjugate directions beside what they are built on: the sweeps on photographs."""

import pathlib
from collections.abc import Sequence

import numpy as np

from benchmarks import report, sweep_report

RESULTS = pathlib.Path(__file__).parent / "results"
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


def accuracies(rows: Sequence[report.Row], name: str) -> list[float]:
    """Test accuracies in percent of the runs of an optimizer."""
    return [
        100 * row["test_accuracy"] for row in rows if row["config"]["optimizer"] == name
    ]


def table() -> str:
    """Test accuracy in percent, mean and deviation over seeds, of every pair.

    The one that `is_ahead` of the other is bold.
    """
    lines = []
    for folder in SWEEPS:
        by_length = report.group_rows(
            sweep_report.tested(RESULTS / folder), "num_epochs"
        )
        for _, rows in sorted(by_length.items()):
            first = rows[0]
            config = first["config"]
            cells = [cell for pair in PAIRS for cell in _pair(rows, *pair)]
            what = f"{_NAMES[config['dataset']]}, {_NAMES[config['model']]}"
            size = f"{config['batch_size']:,}"
            lines.append((what, size, f"{first['num_steps']:,}", *cells))
    header = "images and network", "batch", "steps"
    header += tuple(name for ours, others in PAIRS for name in (ours, others[0]))
    return report.markdown(header, lines)


def _pair(
    rows: Sequence[report.Row], name: str, others: tuple[str, ...]
) -> tuple[str, str]:
    ours = accuracies(rows, name)
    ran = [values for which in others if (values := accuracies(rows, which))]
    theirs = max(ran, key=np.mean, default=[])
    return _cell(ours, theirs), _cell(theirs, ours)


def _cell(values: list[float], others: list[float]) -> str:
    if not values:
        return ""
    text = f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"
    return f"**{text}**" if others and is_ahead(values, others) else text
