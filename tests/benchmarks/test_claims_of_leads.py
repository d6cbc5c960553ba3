"""What README and docs say of who is ahead of whom holds for the committed rows."""

import numpy as np
import pytest

from benchmarks import growing_batch, readme, report, sweep, sweep_choice, sweep_pairs
from tests.benchmarks.claims import BUILT_ON, RESULTS, means_and_spreads


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
    ("folder", "num_epochs", "name", "other"),
    [
        # Every batch but 8,192.
        ("sweep_cifar100_16x16", 1, "nlcg_muon", "muon"),
        ("sweep_cifar100_16x16", 2, "nlcg_muon", "muon"),
        ("sweep_cifar100_16x16", 4, "nlcg_muon", "muon"),
        ("sweep_cifar100_16x16_b16384", 8, "nlcg_muon", "muon"),
        ("sweep_cifar100_16x16_vit", 4, "nlcg_muon", "muon"),
        # Residual networks and photographs.
        ("sweep_digits_resnet8", 10, "nlcg", "nesterov"),
        ("sweep_digits_resnet8", 30, "nlcg", "nesterov"),
        ("sweep_cifar100_16x16", 2, "nlcg", "nesterov"),
        ("sweep_cifar100_16x16", 4, "nlcg", "nesterov"),
        ("sweep_cifar100_16x16_b8192", 4, "nlcg", "nesterov"),
        # A constant rate.
        ("sweep_cifar100_16x16_constant", 1, "nlcg_adam", "adamw"),
    ],
)
def test_level(folder, num_epochs, name, other):
    """As README and docs/choosing.md say."""
    (ours, spread), (theirs, other_spread) = means_and_spreads(
        folder, num_epochs, name, other
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


def test_nesterovs_step():
    """As README and docs/choosing.md say: the more, the longer the run."""
    names = sweep_pairs.NESTEROV, *sweep_pairs.REPEATED
    (ahead, spread), *others = means_and_spreads("sweep_cifar100_16x16", 4, *names)
    for other, of_other in others:
        assert ahead - other > spread + of_other
        assert ahead - other == pytest.approx(3, abs=0.25)
    trials = sweep_choice.trial_groups(RESULTS / "sweep_cifar100_16x16")
    held_out = []
    for name in sweep_pairs.NESTEROV, "muon":
        first, *others = sweep_choice.shortlist(
            RESULTS / "sweep_cifar100_16x16", trials[2048, 4, name], 3
        )
        assert sweep_choice.best_by_mean([first, *others]) == first
        assert all(len(c.held_out) == 3 for c in (first, *others))
        held_out.append(100 * np.array(first.held_out))
    assert np.subtract(*map(np.mean, held_out)) == pytest.approx(1.7, abs=0.1)
    assert not sweep_pairs.is_ahead(*held_out)
    (ahead, spread), (plain, of_plain), (muon, of_muon) = means_and_spreads(
        "sweep_cifar100_16x16", 2, *names
    )
    assert spread + of_plain < ahead - plain < 2
    assert abs(ahead - muon) < spread + of_muon
    for folder, num_epochs, lead in (
        ("sweep_cifar100_16x16", 1, 1.3),
        ("sweep_cifar100_16x16_b8192", 8, 2.75),
    ):
        (ahead, spread), (plain, of_plain), (muon, of_muon) = means_and_spreads(
            folder, num_epochs, *names
        )
        assert abs(ahead - plain) < min(spread, of_plain)
        assert ahead - muon > spread + of_muon
        assert ahead - muon == pytest.approx(lead, abs=0.1)
    runs = report.group_rows(
        growing_batch.best_known(growing_batch.CONSTANT_RATE[growing_batch.SAME_STEPS]),
        "batch_size",
        "optimizer",
    )
    assert [size for size, name in runs if name == sweep_pairs.NESTEROV] == [2048, 8192]
    for size in 2048, 8192:
        ahead, plain, muon = (
            sweep_pairs.accuracies(runs[size, name]) for name in names
        )
        assert sweep_pairs.is_ahead(ahead, muon)
        assert not sweep_pairs.is_ahead(ahead, plain)
        assert not sweep_pairs.is_ahead(plain, ahead)


def test_nesterovs_step_with_few_trials():
    """As docs/choosing.md says, where rates fall."""
    lengths = (
        ("sweep_cifar100_16x16", 2048, 1),
        ("sweep_cifar100_16x16", 2048, 2),
        ("sweep_cifar100_16x16", 2048, 4),
        ("sweep_cifar100_16x16_b8192", 8192, 8),
    )
    leads = []
    for folder, batch_size, num_epochs in lengths:
        trials = sweep_choice.trial_groups(RESULTS / folder)
        for number in 2, 4, 8:
            ahead, plain, muon = (
                sweep_choice.expected_best(trials[batch_size, num_epochs, name], number)
                for name in (sweep_pairs.NESTEROV, *sweep_pairs.REPEATED)
            )
            assert ahead > muon
            leads.append(ahead - plain)
    assert min(leads) > 0
    assert max(leads) == pytest.approx(1, abs=0.1)


def test_settings_tuned_further():
    """As README and docs/choosing.md say: ahead still, but by less at batch 8,192."""
    repeated = sweep_pairs.repeated(sweep_pairs.FALLING_RATE)
    falling = {size: pair for (_, size, _), _, *pair in repeated}
    leads = {}
    for folder in sweep_pairs.TUNED_FURTHER:
        study = RESULTS / folder / "past"
        tried = report.group_rows(report.load(study / "results.jsonl"), "optimizer")
        settings = [
            [
                (row["config"]["optimizer_setting"], row["learning_rate"])
                for row in tried[name,]
            ]
            for name in sweep_pairs.REPEATED
        ]
        assert len({len(same) for same in settings}) == 1
        final = report.group_rows(
            report.load(study / "final" / "results.jsonl"), "optimizer"
        )
        pair = [sweep_pairs.accuracies(final[name,]) for name in sweep_pairs.REPEATED]
        assert sweep_pairs.is_ahead(*pair)
        size = final[sweep_pairs.REPEATED[0],][0]["config"]["batch_size"]
        leads[size] = np.subtract(*map(np.mean, pair))
        if size == 8_192:  # better than with rates that fall still
            for ours, (_, by_mean, _) in zip(pair, falling[f"{size:,}"], strict=True):
                others = sweep_pairs.accuracies(by_mean)
                assert sweep_pairs.is_ahead(ours, others)
                assert np.mean(ours) - np.mean(others) > 0.9
    assert leads == {
        2_048: pytest.approx(2.5, abs=0.25),
        8_192: pytest.approx(1.5, abs=0.25),
    }
    # The others: what was chosen is the best still.
    (folder,) = set(sweep_pairs.CONSTANT_RATE) - set(sweep_pairs.TUNED_FURTHER)
    tried = report.group_rows(
        report.load(RESULTS / folder / "past" / "results.jsonl"), "optimizer"
    )
    chosen = {
        name: sweep_choice.chosen(rows)
        for (*_, name), rows in sweep_choice.trial_groups(RESULTS / folder).items()
    }
    for name in sweep_pairs.REPEATED:
        assert len(tried[name,]) == 4
        best = max(tried[name,], key=sweep_choice.accuracy)
        assert sweep_choice.has_settings_of(best, chosen[name])


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
