"""The README's figures are those of the committed rows."""

import numpy as np
import pytest

from benchmarks import (
    growing_batch,
    rate_sensitivity,
    readme,
    report,
    sweep_pairs,
    sweep_report,
)

RESULTS = readme.ROOT / readme.RESULTS
# What conjugate directions are put around, by optimizer.
BUILT_ON = {"nlcg": "sgd", "nlcg_adam": "adamw", "nlcg_muon": "muon"}


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
    largest = max(batch_size for batch_size, _ in groups)
    means = {
        name: np.mean([row["test_accuracy"] for row in rows])
        for (batch_size, name), rows in groups.items()
        if batch_size == largest
    }
    highest = sorted(means, key=lambda name: means[name])[-4:]
    assert set(highest) == {"nlcg", "ml_ncg", "nlcg_adam", "nlcg_muon"}


def test_same_epochs_at_four_times_the_batch():
    """As README, docs/choosing.md and the results page say."""
    runs = {
        (config["batch_size"], config["num_epochs"], row["num_steps"])
        for folder in ("sweep_cifar100_16x16", "sweep_cifar100_16x16_b8192")
        for row in sweep_report.tested(RESULTS / folder)
        for config in [row["config"]]
    }
    assert runs == {
        (2048, 2, 48),
        (2048, 4, 97),
        (8192, 4, 24),
        (8192, 8, 48),
        (8192, 16, 97),
    }


@pytest.mark.parametrize("folders", growing_batch.SWEEPS.values())
def test_growing_batch_compares_the_same_optimizers(folders):
    rows = growing_batch.comparable(folders)
    assert {row["config"]["num_epochs"] for row in rows} == {4}
    groups = report.group_rows(rows, "batch_size", "optimizer")
    sizes = sorted({size for size, _ in groups})
    assert sizes == [2048, 8192]
    names = [{name for s, name in groups if s == size} for size in sizes]
    assert names[0] == names[1] >= {"muon", "nlcg_muon"}
    best = [name for size, name in groups if size == 8192]
    means = [np.mean([r["test_accuracy"] for r in groups[8192, n]]) for n in best]
    assert means == sorted(means, reverse=True)
    assert [growing_batch.num_trials(folder) for folder in folders] == [12, 24]


def test_growing_batch_is_drawn(tmp_path):
    growing_batch.plot(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


@pytest.mark.parametrize("folder", sweep_pairs.SWEEPS)
def test_pairs_had_as_many_trials(folder):
    """As the README says, and that it is twelve or twenty-four."""
    trials = sweep_report.trial_groups(RESULTS / folder)
    compared = 0
    for (batch_size, num_epochs, name), rows in trials.items():
        for others in dict(sweep_pairs.PAIRS).get(name, ()):
            if other := trials.get((batch_size, num_epochs, others)):
                assert len(rows) == len(other)
                assert len(rows) in (12, 24)
                compared += 1
    assert compared


def test_the_table_of_pairs():
    """One of its cells, from the rows; who is ahead is bold."""
    rows = [
        row["test_accuracy"]
        for row in sweep_report.tested(RESULTS / "sweep_tiny_imagenet_16x16_b8192")
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


@pytest.mark.parametrize(
    ("folder", "comparisons"),
    [
        ("sweep_digits", 6),
        ("sweep_digits_resnet8", 6),
        ("sweep_cifar100_16x16", 6),
        ("sweep_cifar100_16x16_b8192", 12),
        ("sweep_cifar100_16x16_vit", 6),
        ("sweep_cifar100_16x16_vit_b8192", 3),
        ("sweep_tiny_imagenet_16x16_b8192", 6),
    ],
)
def test_few_trials_go_further_with_conjugate_directions(folder, comparisons):
    """As README and docs/choosing.md say of every length of run."""
    trials = report.load(RESULTS / folder / "trials" / "results.jsonl")
    groups = report.group_rows(trials, "num_epochs", "optimizer")
    compared = 0
    for (num_epochs, name), rows in groups.items():
        other = groups.get((num_epochs, BUILT_ON.get(name)))
        for number in (1, 2, 4) if other else ():
            best = sweep_report.expected_best
            assert best(rows, number) > best(other, number)
            compared += 1
    assert compared >= comparisons


@pytest.mark.parametrize(
    ("folder", "num_epochs", "name", "others"),
    [
        ("sweep_cifar100_16x16_b8192", 4, "nlcg_muon", ["muon"]),
        ("sweep_cifar100_16x16_b8192", 8, "nlcg_muon", ["muon"]),
        ("sweep_cifar100_16x16_b8192", 16, "nlcg_muon", ["muon"]),
        ("sweep_cifar100_16x16_vit_b8192", 4, "nlcg_muon", ["muon"]),
        ("sweep_tiny_imagenet_16x16_b8192", 2, "nlcg_muon", ["muon"]),
        (
            "sweep_cifar100_16x16_b8192",
            4,
            "nlcg_adam",
            ["adamw", "adamw_b1", "lamb", "lars"],
        ),
        ("sweep_tiny_imagenet_16x16_b8192", 2, "nlcg_adam", ["adamw"]),
        ("sweep_cifar100_16x16_b8192", 4, "nlcg", ["nesterov"]),
        ("sweep_digits", 10, "nlcg_adam", ["adamw"]),
        ("sweep_digits_resnet8", 10, "nlcg_adam", ["adamw"]),
        ("sweep_cifar100_16x16", 2, "nlcg_adam", ["adamw"]),
        ("sweep_cifar100_16x16", 4, "nlcg_adam", ["adamw"]),
        ("sweep_cifar100_16x16_vit", 4, "nlcg_adam", ["adamw"]),
    ],
)
def test_ahead_by_more_than_the_spread(folder, num_epochs, name, others):
    """As README and docs/choosing.md say."""
    groups = report.group_rows(
        sweep_report.tested(RESULTS / folder), "num_epochs", "optimizer"
    )

    def accuracies(which):
        rows = groups[num_epochs, which]
        assert len(rows) >= 3
        return np.array([row["test_accuracy"] for row in rows])

    ours = accuracies(name)
    for theirs in map(accuracies, others):
        assert ours.mean() - theirs.mean() > ours.std(ddof=1) + theirs.std(ddof=1)


@pytest.mark.parametrize(
    ("folder", "num_epochs", "ahead"),
    [
        ("sweep_cifar100_16x16", 2, True),
        ("sweep_cifar100_16x16_b8192", 4, False),
        ("sweep_tiny_imagenet_16x16_b8192", 2, False),
    ],
)
def test_the_rule_for_beta_and_a_constant(folder, num_epochs, ahead):
    """As README and docs/choosing.md say: the rule is ahead, or they are as good."""
    groups = report.group_rows(
        sweep_report.tested(RESULTS / folder), "num_epochs", "optimizer"
    )
    rule, constant = (
        np.array([row["test_accuracy"] for row in groups[num_epochs, name]])
        for name in ("nlcg_muon", "nlcg_muon_constant")
    )
    difference = rule.mean() - constant.mean()
    spread = rule.std(ddof=1) + constant.std(ddof=1)
    assert difference > spread if ahead else abs(difference) < spread / 2
    # With fewer trials the rule is ahead in both.
    trials = report.group_rows(
        report.load(RESULTS / folder / "trials" / "results.jsonl"),
        "num_epochs",
        "optimizer",
    )
    for number in (1, 2, 4, 8):
        of_rule, of_constant = (
            sweep_report.expected_best(trials[num_epochs, name], number)
            for name in ("nlcg_muon", "nlcg_muon_constant")
        )
        assert of_rule > of_constant


def test_beta_at_its_bound():
    """As docs/choosing.md says of the longest runs at the largest batch."""
    folder = RESULTS / "sweep_cifar100_16x16_b8192/final"
    curves = [report.load(path) for path in folder.glob("*-nlcg_muon-*.jsonl")]
    assert len(curves) == 3
    for curve in curves:
        betas = np.array([row["beta"] for row in curve])
        assert len(betas) == 97
        assert betas.max() == pytest.approx(0.8)
        assert np.mean(betas > 0.799) > 0.9


def test_learning_rates_of_conjugate_directions():
    """As docs/migrating.md says."""
    ratios = {name: [] for name in BUILT_ON}
    for folder in RESULTS.glob("sweep_*"):
        chosen = {
            key: rows[0]["learning_rate"]
            for key, rows in report.group_rows(
                sweep_report.tested(folder), "num_epochs", "optimizer"
            ).items()
        }
        for (num_epochs, name), rate in chosen.items():
            other = chosen.get((num_epochs, BUILT_ON.get(name)))
            if other is not None:
                ratios[name].append(rate / other)
    stated = {"nlcg": (1, 2.4), "nlcg_adam": (1 / 6, 1.6), "nlcg_muon": (1 / 7, 2.4)}
    for name, (low, high) in stated.items():
        assert low <= min(ratios[name]) < 1.2 * low
        assert high / 1.2 < max(ratios[name]) <= high


def test_what_a_wrong_learning_rate_costs():
    """As docs/choosing.md says: more room far off, and no rule close to the best."""
    rows = report.load(RESULTS / "sweep_cifar100_16x16/rates/results.jsonl")
    curves = {}
    for (name, rate), same in report.group_rows(
        rows, "optimizer", "learning_rate"
    ).items():
        values = [sweep_report.accuracy(row) for row in same]
        curves.setdefault(name, []).append((rate, sum(values) / len(values)))

    def width(name, share):
        curve = dict(enumerate(value for _, value in sorted(curves[name])))
        low, high = rate_sensitivity.stretch(curve, share)
        return high - low

    for name, other in BUILT_ON.items():
        assert 0.1 < width(name, 0.5) - width(other, 0.5) < 1
    assert width("nlcg_adam", 0.9) > width("adamw", 0.9)
    assert width("nlcg_muon", 0.9) < width("muon", 0.9)
