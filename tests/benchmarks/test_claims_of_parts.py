"""What README and docs say of the parts of NLCG holds for the committed rows."""

import numpy as np
import pytest

from benchmarks import (
    checkpoint,
    growing_batch,
    levers,
    report,
    sweep,
    sweep_choice,
    sweep_pairs,
    tuned_runs,
)
from benchmarks.config import Config
from tests.benchmarks.claims import RESULTS, means_and_spreads


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
    assert (min(leads) > 0) == (name == "nlcg_adam" or num_epochs == 30)


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
    assert {name for *_, name in trials} == {*names, sweep_pairs.NESTEROV}
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
    for name in "twice the learning rate", "schedule cosine":
        assert bring.pop(name) == pytest.approx(-1, abs=0.25)
    assert bring.pop("half the learning rate") == pytest.approx(-0.5, abs=0.25)
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
