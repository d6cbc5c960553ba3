"""The README's figures are those of the committed rows."""

import json

import numpy as np
import pytest

from benchmarks import (
    checkpoint,
    growing_batch,
    levers,
    rate_sensitivity,
    readme,
    report,
    sweep,
    sweep_choice,
    sweep_pairs,
    tuned_runs,
)
from benchmarks.config import Config

RESULTS = readme.ROOT / readme.RESULTS
# What conjugate directions are put around, by optimizer.
BUILT_ON = {"nlcg": "sgd", "nlcg_adam": "adamw", "nlcg_muon": "muon"}


def means_and_spreads(folder, num_epochs, *names, num_trials=None):
    """Of the test accuracies of what as many trials of each chose, in percent."""
    number = num_trials or min(
        len(rows)
        for (_, epochs, name), rows in sweep_choice.trial_groups(
            RESULTS / folder
        ).items()
        if epochs == num_epochs and name in names
    )
    groups = report.group_rows(
        sweep_choice.final_runs(RESULTS / folder, num_epochs, number), "optimizer"
    )
    values = [sweep_pairs.accuracies(groups[name,]) for name in names]
    assert all(len(v) >= 3 for v in values)
    return [(np.mean(v), np.std(v, ddof=1)) for v in values]


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
    assert not growing_batch.by_several_seeds(same_epochs)
    configs = [row["config"] for row in growing_batch.comparable(same_epochs)]
    assert {(c["model"], c["num_epochs"]) for c in configs} == {("resnet8", 4)}


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


def test_where_to_start():
    """As docs/choosing.md says of what was chosen."""
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in sweep_pairs.settings().splitlines()[2:]
    ]
    chosen = {name: [c for c in cells if c[3] == name] for name, _ in sweep_pairs.PAIRS}
    assert all(chosen.values())
    # Rate, schedules, warm-up, decay, the usual bound on beta.
    table = {
        "nlcg_muon": (
            (0.02, 0.09),
            {"linear", "cosine", "constant"},
            (0.02, 0.05),
            (0.001, 0.5),
        ),
        "nlcg_adam": (
            (0.0025, 0.008),
            {"linear", "constant"},
            (0.02, 0.2),
            (0.001, 0.2),
        ),
        "nlcg": ((2.5, 6.0), {"cosine"}, (0.02, 0.1), (4e-5, 4e-4)),
    }
    bounds = {"nlcg_muon": "0.8", "nlcg_adam": "0.9", "nlcg": "0.9"}
    for name, (rates, schedules, warmups, decays) in table.items():
        ours = chosen[name]
        assert {c[5] for c in ours} == schedules
        for column, (low, high) in ((4, rates), (6, warmups), (7, decays)):
            numbers = [float(c[column].split(",")[0]) for c in ours]
            assert min(numbers) == pytest.approx(low, rel=0.25)
            assert max(numbers) == pytest.approx(high, rel=0.25)
        assert all(("in the loss" in c[7]) == (name == "nlcg") for c in ours)
        assert sum(c[9] == bounds[name] for c in ours) > len(ours) / 2


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


@pytest.mark.parametrize(
    ("folder", "comparisons"),
    [
        ("sweep_digits", 6),
        ("sweep_digits_resnet8", 6),
        ("sweep_cifar100_16x16", 9),
        ("sweep_cifar100_16x16_b8192", 12),
        ("sweep_cifar100_16x16_b16384", 3),
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
            best = sweep_choice.expected_best
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
        (
            "sweep_tiny_imagenet_16x16_b8192",
            2,
            "nlcg_adam",
            ["adamw", "adamw_b1"],
        ),
        ("sweep_cifar100_16x16_b8192", 4, "nlcg", ["nesterov"]),
        ("sweep_digits", 10, "nlcg", ["nesterov"]),
        ("sweep_digits", 30, "nlcg", ["nesterov", "sgd"]),
        ("sweep_digits", 10, "nlcg_adam", ["adamw", "sgd", "nesterov", "lars"]),
        ("sweep_digits_resnet8", 10, "nlcg_adam", ["adamw", "sgd", "nesterov", "lars"]),
        ("sweep_digits_resnet8", 10, "nlcg_muon", ["adamw", "sgd", "nesterov", "lars"]),
        ("sweep_cifar100_16x16", 2, "nlcg_adam", ["adamw"]),
        ("sweep_cifar100_16x16", 4, "nlcg_adam", ["adamw"]),
        ("sweep_cifar100_16x16_vit", 4, "nlcg_adam", ["adamw"]),
    ],
)
def test_ahead_by_more_than_the_spread(folder, num_epochs, name, others):
    """As README and docs/choosing.md say."""
    (ours, spread), *rest = means_and_spreads(folder, num_epochs, name, *others)
    for theirs, other_spread in rest:
        assert ours - theirs > spread + other_spread


@pytest.mark.parametrize(
    ("folder", "num_epochs", "share"),
    [
        ("sweep_cifar100_16x16", 2, 1),
        ("sweep_cifar100_16x16_b8192", 4, 0.5),
        ("sweep_tiny_imagenet_16x16_b8192", 2, 0.5),
    ],
)
def test_the_rule_for_beta_and_a_constant(folder, num_epochs, share):
    """As README and docs/choosing.md say: alike with all trials, not with fewer."""
    (rule, spread), (constant, other_spread) = means_and_spreads(
        folder, num_epochs, "nlcg_muon", "nlcg_muon_constant"
    )
    assert abs(rule - constant) < share * (spread + other_spread)
    trials = report.group_rows(
        report.load(RESULTS / folder / "trials" / "results.jsonl"),
        "num_epochs",
        "optimizer",
    )
    for number in (1, 2, 4, 8):
        of_rule, of_constant = (
            sweep_choice.expected_best(trials[num_epochs, name], number)
            for name in ("nlcg_muon", "nlcg_muon_constant")
        )
        assert of_rule > of_constant


@pytest.mark.parametrize("name", ["nlcg", "nlcg_adam"])
@pytest.mark.parametrize("num_epochs", [10, 30, 100])
def test_the_rule_for_beta_and_a_constant_on_digits(name, num_epochs):
    """As docs/choosing.md says: level, but for the shortest runs in Adam's scaling."""
    folder = "sweep_digits_parts"
    (rule, spread), (constant, other_spread) = means_and_spreads(
        folder, num_epochs, name, f"{name}_constant"
    )
    ahead = rule - constant > spread + other_spread
    assert ahead == ((name, num_epochs) == ("nlcg_adam", 10))
    assert constant - rule < spread + other_spread
    trials = sweep_choice.trial_groups(RESULTS / folder)
    leads = [
        sweep_choice.expected_best(trials[1137, num_epochs, name], number)
        - sweep_choice.expected_best(
            trials[1137, num_epochs, f"{name}_constant"], number
        )
        for number in (1, 2, 4)
    ]
    assert (min(leads) > 0) == ((name, num_epochs) != ("nlcg", 100))


def test_polak_ribiere_untuned_on_digits():
    """As docs/choosing.md says: no better than SGD with one or two trials."""
    trials = sweep_choice.trial_groups(RESULTS / "sweep_digits")
    for num_epochs in 10, 30, 100:
        for number in 1, 2:
            rule, usual, sgd = (
                sweep_choice.expected_best(trials[1137, num_epochs, name], number)
                for name in ("nlcg_pr", "nlcg", "sgd")
            )
            assert abs(rule - sgd) < 0.5
            assert usual > rule + 1


def test_polak_ribiere_in_muons_metric():
    """As docs/choosing.md says."""
    (rule, spread), (usual, of_usual), (constant, of_constant) = means_and_spreads(
        "sweep_cifar100_16x16", 2, "nlcg_muon_pr", "nlcg_muon", "nlcg_muon_constant"
    )
    assert abs(rule - usual) < spread + of_usual
    assert rule - constant > spread + of_constant


def test_what_the_past_earns_in_muons_metric():
    """As README and docs/choosing.md say: a sum of directions."""
    (none, spread), (muon, of_muon), (constant, of_constant) = means_and_spreads(
        "sweep_cifar100_16x16_b8192", 4, "steepest_muon", "muon", "nlcg_muon_constant"
    )
    assert spread + of_muon < muon - none < 1.5
    assert constant - none == pytest.approx(4, abs=0.5)
    assert constant - muon > of_constant + of_muon


def test_what_the_past_earns_at_a_constant_rate():
    """As README and docs/choosing.md say: the same, and the rule nothing more."""
    folder = "sweep_cifar100_16x16_b8192_constant"
    trials = sweep_choice.trial_groups(RESULTS / folder)
    assert {len(rows) for rows in trials.values()} == {16}
    names = "steepest_muon", "muon", "nlcg_muon_constant", "nlcg_muon"
    assert {name for *_, name in trials} == set(names)
    rows = growing_batch.by_several_seeds([(folder, 4, 16)], names)
    values = [
        sweep_pairs.accuracies(same)
        for same in report.group_rows(rows, "optimizer").values()
    ]
    (none, spread), (muon, of_muon), (constant, of_constant), (rule, of_rule) = (
        (np.mean(v), np.std(v, ddof=1)) for v in values
    )
    assert spread + of_muon < muon - none < 2.5
    assert constant - none == pytest.approx(6, abs=0.25)
    assert constant - muon > of_constant + of_muon
    assert 0 < rule - constant < of_rule + of_constant
    for number in 1, 2, 4, 8:
        with_constant, with_rule = (
            sweep_choice.expected_best(trials[8192, 4, name], number)
            for name in names[2:]
        )
        assert abs(with_rule - with_constant) < 0.2


@pytest.mark.parametrize(
    ("folder", "num_epochs"),
    [
        ("sweep_cifar100_16x16", 1),
        ("sweep_cifar100_16x16", 2),
        ("sweep_cifar100_16x16", 4),
        ("sweep_cifar100_16x16_b16384", 8),
        ("sweep_cifar100_16x16_vit", 4),
    ],
)
def test_level_with_muon(folder, num_epochs):
    """As README and docs/choosing.md say of every batch but 8,192."""
    (ours, spread), (theirs, other_spread) = means_and_spreads(
        folder, num_epochs, "nlcg_muon", "muon"
    )
    assert abs(ours - theirs) < spread + other_spread


def test_level_with_adamw_at_a_constant_rate():
    """As README and docs/choosing.md say."""
    (ours, spread), (theirs, other_spread) = means_and_spreads(
        "sweep_cifar100_16x16_constant", 1, "nlcg_adam", "adamw"
    )
    assert abs(ours - theirs) < spread + other_spread


def test_leads_with_half_the_trials():
    """As README and docs/choosing.md say: five points, and nothing; a larger lead."""

    def lead(folder, num_epochs, num_trials):
        (ours, _), (theirs, _) = means_and_spreads(
            folder, num_epochs, "nlcg_muon", "muon", num_trials=num_trials
        )
        return ours - theirs

    folder = "sweep_cifar100_16x16_b16384"
    assert 5 < lead(folder, 8, 24) < 5.5
    assert lead(folder, 8, 48) < 0.5
    folder = "sweep_cifar100_16x16_b8192"
    assert lead(folder, 4, 48) > lead(folder, 4, 24) + 0.5


def test_best_three_trials():
    """As docs/choosing.md says: ahead at every size, at the largest by the most."""
    leads = []
    for folder, num_epochs, number in growing_batch.PANELS[growing_batch.SAME_STEPS]:
        trials = report.group_rows(
            report.load(RESULTS / folder / "trials" / "results.jsonl"),
            "num_epochs",
            "optimizer",
        )
        ours, theirs = (
            [
                np.mean(sweep_pairs.accuracies(candidate.tests))
                for candidate in sweep_choice.shortlist(
                    RESULTS / folder, trials[num_epochs, name][:number], 3
                )
            ]
            for name in ("nlcg_muon", "muon")
        )
        assert len(ours) == len(theirs) == 3
        leads.append(np.mean(ours) - np.mean(theirs))
    assert leads == sorted(leads)
    assert leads[0] > 1
    assert leads[-1] < 3
    assert min(ours) > max(theirs)  # at the largest batch


def test_choice_by_several_seeds():
    """As README and docs/choosing.md say: ahead but at the smallest batch."""
    leads = {}
    repeated = sweep_pairs.repeated(sweep_pairs.FALLING_RATE)
    for (_, size, steps), number, ours, theirs in repeated:
        assert (number, steps) == (48, "24")
        _, by_mean, _ = map(sweep_pairs.accuracies, ours)
        _, of_muon, _ = map(sweep_pairs.accuracies, theirs)
        lead = np.mean(by_mean) - np.mean(of_muon)
        leads[size] = lead, sweep_pairs.is_ahead(by_mean, of_muon)
        assert lead > 0
    assert leads == {
        "2,048": (pytest.approx(1, abs=0.5), False),
        "8,192": (pytest.approx(4, abs=0.5), True),
        "16,384": (pytest.approx(2, abs=0.5), True),
    }


def test_a_constant_learning_rate():
    """As README and docs/choosing.md say: better for both at the larger batches."""
    repeated = sweep_pairs.repeated(sweep_pairs.FALLING_RATE)
    falling = {size: pair for (_, size, _), _, *pair in repeated}
    leads = {}
    for what, number, *pair in sweep_pairs.repeated(sweep_pairs.CONSTANT_RATE):
        _, size, steps = what
        assert (number, steps) == (16, "24, constant")
        constant = [sweep_pairs.accuracies(by_mean) for _, by_mean, _ in pair]
        before = [sweep_pairs.accuracies(by_mean) for _, by_mean, _ in falling[size]]
        for ours, others in zip(constant, before, strict=True):
            better = sweep_pairs.is_ahead(ours, others)
            assert better == (size != "2,048")
            assert np.mean(ours) - np.mean(others) > (1.9 if better else 0)
        assert sweep_pairs.is_ahead(*constant)
        leads[size] = np.subtract(*map(np.mean, constant))
        # The same was best for both.
        ours, theirs = (by_mean[0]["config"] for _, by_mean, _ in pair)
        assert all(ours[name] == theirs[name] for name in sweep_choice.TUNED)
    assert leads == {
        "2,048": pytest.approx(1.5, abs=0.2),
        "8,192": pytest.approx(4, abs=0.2),
        "16,384": pytest.approx(3, abs=0.3),
    }
    for folder in sweep_pairs.CONSTANT_RATE:
        for trials in sweep_choice.trial_groups(RESULTS / folder).values():
            assert {row["config"]["schedule"] for row in trials} == {"constant"}


def test_what_was_chosen_with_a_larger_network():
    """As README and docs/choosing.md say: ahead, with the same settings for both."""
    rows = report.load(RESULTS / readme.LARGER_NETWORK / "results.jsonl")
    chosen = sweep_choice.final_runs(RESULTS / "sweep_cifar100_16x16_b8192_constant")
    runs = report.group_rows(rows, "optimizer", "seed")
    names, seeds = ("nlcg_muon", "muon"), (1, 2, 3)
    assert set(runs) == {(name, seed) for name in names for seed in seeds}
    kept = [sweep.identity(row["config"]) | {"model": "resnet20"} for row in chosen]
    assert all(sweep.identity(row["config"]) in kept for row in rows)
    ours, theirs = (
        sweep_pairs.accuracies([row for seed in seeds for row in runs[name, seed]])
        for name in names
    )
    assert sweep_pairs.is_ahead(ours, theirs)
    assert np.mean(ours) - np.mean(theirs) == pytest.approx(3, abs=0.25)
    small = report.group_rows(chosen, "optimizer")
    for name, larger in zip(names, (ours, theirs), strict=True):
        assert sweep_pairs.is_ahead(sweep_pairs.accuracies(small[name,]), larger)


def test_what_the_paper_protocol_is_missing():
    """As the README says: its test accuracies are of stale statistics, one run each."""
    rows = report.load(readme.ROOT / readme.CIFAR / "results.jsonl")
    assert {row["config"]["eval_statistics"] for row in rows} == {"running"}
    assert len(rows) == len({row["config"]["optimizer"] for row in rows}) == 4


def test_levers():
    """As docs/choosing.md says of one choice changed at a time."""
    folder = RESULTS / "sweep_cifar100_16x16_b8192"
    trials = sweep_choice.trial_groups(folder)[8192, 4, "nlcg_muon"]
    choice = sweep_choice.chosen(trials)
    changes = levers.levers(Config(**choice["config"]))
    made = report.load(folder / "levers/results.jsonl")
    rows = {}
    for name, change in {levers.AS_CHOSEN: {}, **changes}.items():
        for config in tuned_runs.changed(choice, change, [4, 5], folder, folder):
            wanted = sweep.identity(checkpoint.settings(config))
            (row,) = (r for r in made if sweep.identity(r["config"]) == wanted)
            rows.setdefault(name, []).append(row)
    bring = {name: v.mean() for name, v in levers.differences(rows).items()}
    for name in "nothing of the past", "schedule of the paper":
        assert bring.pop(name) == pytest.approx(-3, abs=0.5)
    for name in "half the learning rate", "twice the learning rate", "schedule cosine":
        assert bring.pop(name) == pytest.approx(-1, abs=0.5)
    assert bring.pop("schedule constant") == pytest.approx(2, abs=0.5)
    assert all(abs(value) <= 0.5 for value in bring.values())
    assert len(bring) == 9


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
                sweep_choice.final_runs(folder), "num_epochs", "optimizer"
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


def test_cost_of_an_update():
    """The table of docs/choosing.md."""
    results = json.loads((RESULTS / "step_cost/h100.json").read_text())
    passes = {}
    for row in results["rows"]:
        copies = round(row["moved_bytes"] / row["parameter_bytes"])
        passes.setdefault(row["optimizer"], copies)  # the larger network comes first
    page = (readme.ROOT / "docs/choosing.md").read_text()
    for line, without, searched in (
        ("`nlcg`, the default", "nlcg, no search", "nlcg"),
        (
            "with the Hessian's diagonal",
            "nlcg, Hessian diagonal, no search",
            "nlcg, Hessian diagonal",
        ),
        (
            "without a preconditioner",
            "nlcg, Fletcher-Reeves alone",
            "nlcg, no preconditioner",
        ),
        (
            "with Adam's scaling",
            "nlcg, Adam's scaling, no search",
            "nlcg, Adam's scaling",
        ),
    ):
        assert f"| {line} | {passes[without]} | {passes[searched]} |\n" in page
    assert f"| `optax.adamw` | {passes['adamw']} | |\n" in page


def test_what_a_wrong_learning_rate_costs():
    """As docs/choosing.md says: more room far off, and no rule close to the best."""
    rows = report.load(RESULTS / "sweep_cifar100_16x16/rates/results.jsonl")
    curves = {}
    for (name, rate), same in report.group_rows(
        rows, "optimizer", "learning_rate"
    ).items():
        values = [sweep_choice.accuracy(row) for row in same]
        curves.setdefault(name, []).append((rate, sum(values) / len(values)))

    def width(name, share):
        curve = dict(enumerate(value for _, value in sorted(curves[name])))
        low, high = rate_sensitivity.stretch(curve, share)
        return high - low

    for name, other in BUILT_ON.items():
        assert 0.1 < width(name, 0.5) - width(other, 0.5) < 1
    assert width("nlcg_adam", 0.9) > width("adamw", 0.9)
    assert width("nlcg_muon", 0.9) < width("muon", 0.9)
