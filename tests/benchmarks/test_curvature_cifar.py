"""The comparison of tuned learning rates with none: its grid and its table."""

import dataclasses

import numpy as np
import pytest

from benchmarks import curvature_cifar, report
from benchmarks.config import Config


@pytest.mark.parametrize("peak", [-7, -4, -2, 0, 3])
def test_grid_grows_until_its_best_is_inside(peak):
    tried = []

    def score(rate):
        tried.append(rate)
        return -abs(np.log2(rate) - peak)

    best = curvature_cifar.tune(score, [2.0**k for k in range(-4, 1)])
    assert best == 2.0**peak
    assert min(tried) < best < max(tried)
    assert len(tried) == len(set(tried))


def test_divergence_ends_the_grid():
    best = curvature_cifar.tune(lambda rate: rate * (rate < 3), [0.5, 1.0, 2.0])
    assert best == 2.0


def test_runs_are_not_made_twice(tmp_path, monkeypatch):
    base = Config(batch_size=1437, num_epochs=1, num_devices=1, progress=False)
    base = dataclasses.replace(base, out=tmp_path, schedule="linear", warmup=0.0)
    monkeypatch.setattr(curvature_cifar, "tune", lambda score, grid: grid[0])
    curvature_cifar.compare(base, [1])
    rows = report.load(tmp_path / "results.jsonl")
    assert len(rows) == 2
    curvature_cifar.compare(base, [1])
    assert report.load(tmp_path / "results.jsonl") == rows


@pytest.mark.parametrize("reduced", [False, True])
def test_settings_are_possible(reduced):
    base, batch_sizes = curvature_cifar.settings(reduced)
    assert len(batch_sizes) == 3
    for size in batch_sizes:
        microbatches = max(1, size // curvature_cifar.MICROBATCH)
        dataclasses.replace(base, batch_size=size, num_microbatches=microbatches)


def test_table_counts_tuning_runs_and_averages_test_runs():
    def row(optimizer, seed, accuracy, num_validation=0, rate=0.1):
        config = Config(
            dataset="cifar100",
            optimizer=optimizer,
            seed=seed,
            num_validation=num_validation,
            learning_rate=rate,
        )
        name = "validation_accuracy" if num_validation else "test_accuracy"
        return {
            "config": dataclasses.asdict(config),
            "learning_rate": rate,
            name: accuracy,
            "train_loss": 2.0,
            "gradient_equivalents": 30.0,
            "seconds": 5.0,
        }

    rows = [row("nlcg", 100, 0.2, 5000, rate) for rate in (0.05, 0.1, 0.2)]
    rows += [row("nlcg", seed, 0.2 + 0.02 * seed) for seed in (1, 2)]
    rows += [row("nlcg_curvature", seed, 0.25) for seed in (1, 2)]
    lines = curvature_cifar.table(rows).splitlines()
    assert "over 2 seeds" in lines[0]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[-2:]]
    assert cells[0][1:5] == ["nlcg", "0.1", "3", "23.0 ± 1.4"]
    assert cells[1][1:5] == ["nlcg_curvature", "none", "0", "25.0 ± 0.0"]
