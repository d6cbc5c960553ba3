"""The README's figures are those of the committed rows."""

import math

import numpy as np
import pytest

from benchmarks import (
    growing_batch,
    readme,
    report,
    sweep_choice,
    sweep_pairs,
    sweep_report,
)
from tests.benchmarks.claims import RESULTS


def test_results_are_generated():
    match = readme.MARKS.search(readme.README.read_text())
    assert match
    assert match[0] == match[1] + readme.block() + match[2]


def test_pictures_exist():
    text = readme.README.read_text()
    pictures = [part.split(")")[0] for part in text.split("](")[1:]]
    files = [name for name in pictures if name.endswith(".png")]
    assert files
    assert all((readme.ROOT / name).is_file() for name in files)


def test_highest_means_at_the_full_batch():
    """As the README says of the demo."""
    groups = report.group_rows(
        report.load(RESULTS / "demo/results.jsonl"), "batch_size", "optimizer"
    )
    smallest, *_, largest = sorted({batch_size for batch_size, _ in groups})
    assert smallest == 64

    def ranked(size):
        of_size = {name: rows for (b, name), rows in groups.items() if b == size}
        accuracies = {n: sweep_pairs.accuracies(rows) for n, rows in of_size.items()}
        return dict(sorted(accuracies.items(), key=lambda item: -np.mean(item[1])))

    *four, following = list(ranked(largest))[:5]
    assert set(four) == {"nlcg", "ml_ncg", "nlcg_adam", "nlcg_muon"}
    assert (four[-1], following) == ("nlcg_muon", "sgd")
    accuracies = ranked(largest)
    assert not sweep_pairs.is_ahead(accuracies["nlcg_muon"], accuracies["sgd"])
    assert list(ranked(smallest))[-1] == "nlcg_muon"


def test_same_epochs_at_four_times_the_batch():
    """As README, docs/choosing.md and the results page say."""
    runs = {
        (config["batch_size"], config["num_epochs"], row["num_steps"])
        for batch_size in ("", "_b8192", "_b16384")
        for row in sweep_choice.final_runs(
            RESULTS / f"sweep_cifar100_16x16{batch_size}"
        )
        for config in [row["config"]]
    }
    assert runs == {
        (2048, 1, 24),
        (2048, 2, 48),
        (2048, 4, 97),
        (8192, 4, 24),
        (8192, 8, 48),
        (8192, 16, 97),
        (16384, 8, 24),
    }


TRANSFORMER = (
    ("sweep_cifar100_16x16_vit", 4, 12),
    ("sweep_cifar100_16x16_vit_b8192", 4, 24),
)


@pytest.mark.parametrize(
    ("sweeps", "sizes", "num_trials"),
    list(
        zip(
            (*growing_batch.PANELS.values(), TRANSFORMER),
            ([2048, 8192, 16384], [2048, 8192], [2048, 8192]),
            ([48, 48, 48], [12, 24], [12, 24]),
            strict=True,
        )
    ),
)
def test_growing_batch_compares_the_same_optimizers(sweeps, sizes, num_trials):
    rows = growing_batch.comparable(sweeps)
    groups = report.group_rows(rows, "batch_size", "optimizer")
    assert sorted({size for size, _ in groups}) == sizes
    names = [[name for s, name in groups if s == size] for size in sizes]
    assert all(same == names[0] for same in names)
    assert {"muon", "nlcg_muon"} <= set(names[0])
    means = [
        np.mean([row["test_accuracy"] for row in groups[sizes[-1], name]])
        for name in names[0]
    ]
    assert means == sorted(means, reverse=True)
    assert [number for _, _, number in sweeps] == num_trials


def test_growing_batch_keeps_steps_or_epochs():
    """As the titles of its panels say."""
    same_steps, same_epochs = map(
        growing_batch.comparable, growing_batch.PANELS.values()
    )
    assert {row["num_steps"] for row in same_steps} == {24}
    assert {row["config"]["num_epochs"] for row in same_epochs} == {4}


def test_growing_batch_shows_what_several_seeds_chose():
    """As the README says of its picture."""
    same_steps, same_epochs = growing_batch.PANELS.values()
    constant = growing_batch.CONSTANT_RATE[growing_batch.SAME_STEPS]
    for sweeps in same_steps, constant:
        rows = growing_batch.by_several_seeds(sweeps)
        groups = report.group_rows(rows, "optimizer", "batch_size")
        names, sizes = ("nlcg_muon", "muon"), (2048, 8192, 16384)
        assert set(groups) == {(name, size) for name in names for size in sizes}
        assert {row["config"]["seed"] for row in rows} == {1, 2, 3}
        schedules = {row["config"]["schedule"] for row in rows}
        assert ("constant" in schedules) == (sweeps is constant)
        assert sweeps is same_steps or schedules == {"constant"}
        for folder, *_ in sweeps:
            repeats = report.load(RESULTS / folder / "repeats/results.jsonl")
            # And the trial's.
            assert {row["config"]["seed"] for row in repeats} == {4, 5}
    names = [name for name, _ in sweep_pairs.PAIRS if name != sweep_pairs.NESTEROV]
    assert not growing_batch.by_several_seeds(same_epochs, names)
    shown = growing_batch.comparable(same_epochs)
    assert all(row in shown for row in growing_batch.by_several_seeds(same_epochs))
    configs = [row["config"] for row in growing_batch.comparable(same_epochs)]
    assert {(c["model"], c["num_epochs"]) for c in configs} == {("resnet8", 4)}


def test_growing_batch_shows_what_was_tuned_further():
    """As the README's table does: what is known best of either."""
    constant = growing_batch.CONSTANT_RATE[growing_batch.SAME_STEPS]
    groups = report.group_rows(
        growing_batch.best_known(constant), "optimizer", "batch_size"
    )
    sizes = dict(zip(sweep_pairs.CONSTANT_RATE, (2048, 8192, 16384), strict=True))
    table = sweep_pairs.table().splitlines()
    for folder, size in sizes.items():
        for name in sweep_pairs.REPEATED:
            rows = groups[name, size]
            assert len({row["config"]["seed"] for row in rows}) == len(rows) == 3
            if folder not in sweep_pairs.TUNED_FURTHER:
                assert rows == growing_batch.by_several_seeds(constant[-1:], [name])
                continue
            choice = (RESULTS / folder / "past/choice.md").read_text()
            (line,) = (line for line in choice.splitlines() if f"| {name} " in line)
            accuracy = line.split("|")[-2].strip()
            assert sweep_report.accuracy_and_spread(rows) == accuracy
            (line,) = (
                line for line in table if f" {size:,} " in line and "constant" in line
            )
            assert accuracy in line


def test_growing_batch_is_drawn(tmp_path):
    growing_batch.plot(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


@pytest.mark.parametrize("folder", sweep_pairs.SWEEPS)
def test_pairs_had_as_many_trials(folder):
    """As the README says, and how many."""
    trials = sweep_choice.trial_groups(RESULTS / folder)
    compared = 0
    for (batch_size, num_epochs, name), rows in trials.items():
        for others in dict(sweep_pairs.PAIRS).get(name, ()):
            if other := trials.get((batch_size, num_epochs, others)):
                assert len(rows) == len(other)
                constant = folder in sweep_pairs.CONSTANT_RATE
                assert len(rows) in ((16,) if constant else (12, 24, 48))
                compared += 1
    assert compared


@pytest.mark.parametrize(
    "folder", sorted(path.name for path in RESULTS.glob("sweep_*"))
)
def test_trials_that_were_given_up(folder):
    """All by the present rule, as the results page says."""
    classes = {"digits": 10, "cifar100_16x16": 100, "tiny_imagenet_16x16": 200}
    for rows in sweep_choice.trial_groups(RESULTS / folder).values():
        for row in rows:
            guessing = math.log(classes[row["config"]["dataset"]])
            late = row["num_steps"] > report.num_steps(rows) / 2
            if row["status"] == "given up":
                assert not late
                assert row["train_loss"] > guessing


def test_the_table_of_pairs():
    """One of its cells, from the rows; who is ahead is bold."""
    rows = [
        row["test_accuracy"]
        for row in sweep_choice.final_runs(RESULTS / "sweep_tiny_imagenet_16x16_b8192")
        if row["config"]["optimizer"] == "nlcg_muon"
    ]
    mean, spread = 100 * np.mean(rows), 100 * np.std(rows, ddof=1)
    (line,) = [line for line in sweep_pairs.table().splitlines() if "Tiny" in line]
    assert f"| **{mean:.2f} ± {spread:.2f}** " in line
    assert line.count("**") == 4  # the other is nlcg_adam


@pytest.mark.parametrize(
    ("ours", "others", "ahead"),
    [
        ([2.0, 4.0], [0.0, 0.1], True),
        ([2.0, 4.0], [1.0, 2.0], False),
        ([0.0, 0.1], [2.0, 4.0], False),
    ],
)
def test_ahead_is_by_more_than_both_deviations(ours, others, ahead):
    assert sweep_pairs.is_ahead(ours, others) == ahead


def test_what_the_paper_protocol_is_missing():
    """As the README says: its test accuracies are of stale statistics, one run each."""
    rows = report.load(readme.ROOT / readme.CIFAR / "results.jsonl")
    assert {row["config"]["eval_statistics"] for row in rows} == {"running"}
    assert len(rows) == len({row["config"]["optimizer"] for row in rows}) == 4
