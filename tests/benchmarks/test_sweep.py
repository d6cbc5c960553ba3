"""Sweeps: the same budget for all, and nothing chosen by the test set."""

import ast
import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import (
    checkpoint,
    data,
    metrics,
    optimizers,
    report,
    schedules,
    sweep,
    sweep_choice,
    sweep_report,
)
from benchmarks.config import Config

BASE = Config(
    batch_size=512, num_epochs=3, num_validation=300, num_devices=1, progress=False
)


def test_every_space_is_of_an_optimizer_and_its_own_parameter():
    assert set(sweep.SPACES) <= set(optimizers.OPTIMIZERS)
    for name, space in sweep.SPACES.items():
        assert (space.settings == (None,)) == (name not in optimizers.SETTINGS)
        assert set(space.schedules) <= set(schedules.SCHEDULES)
        low, high = space.learning_rates
        assert high / low == pytest.approx(1000)  # as much to search for everyone


@pytest.mark.parametrize("name", sweep.SPACES)
def test_samples_fill_the_space(name):
    space = sweep.SPACES[name]
    samples = [sweep.sample(name, point, 16_384) for point in sweep.points(64)]
    rates = np.log([sample["learning_rate"] for sample in samples])
    low, high = np.log(space.learning_rates)
    assert np.all((rates > low - 0.01) & (rates < high + 0.01))
    # Evenly: about as many in each tenth.
    counts, _ = np.histogram(rates, 10, (low, high))
    assert counts.min() >= 4
    assert {sample["schedule"] for sample in samples} == set(space.schedules)
    assert {sample["optimizer_setting"] for sample in samples} == set(space.settings)
    assert {sample["warmup"] for sample in samples} == set(sweep.WARMUPS)
    for sample in samples:
        assert set(sample) == set(sweep_choice.TUNED)
        assert (sample["l2"] == 0) == space.decoupled
        assert (sample["weight_decay"] > 0) == space.decoupled
        # A config takes them, and an optimizer.
        config = dataclasses.replace(BASE, optimizer=name, **sample)
        optimizers.build(name, 0.1, setting=config.optimizer_setting)


def test_more_trials_begin_with_the_same_ones():
    np.testing.assert_array_equal(sweep.points(20)[:7], sweep.points(7))


def test_learning_rates_follow_the_batch_size():
    point = [0.5] * sweep.DIMENSIONS
    rates = {
        name: [
            sweep.sample(name, point, size)["learning_rate"] for size in (1024, 4096)
        ]
        for name in ("nlcg", "adamw")
    }
    assert rates["nlcg"][1] / rates["nlcg"][0] == pytest.approx(4, rel=0.01)
    assert rates["adamw"][1] / rates["adamw"][0] == pytest.approx(2, rel=0.01)


def test_best_trial_is_chosen_among_those_that_finished():
    def row(status, accuracy, loss):
        return {
            "status": status,
            "validation_accuracy": accuracy,
            "validation_loss": loss,
        }

    rows = [
        row("diverged", 0.99, 0.1),
        row("finished", 0.7, 1.2),
        row("finished", 0.8, 1.0),
        row("finished", 0.8, 0.9),
        {"status": "given up"},
    ]
    assert sweep_choice.chosen(rows) is rows[3]
    assert sweep_choice.median(rows) == 0.7
    assert sweep_choice.chosen(rows[:1]) is None


def test_schedules_in_place_of_those_of_the_space():
    config = dataclasses.replace(BASE, optimizer="muon")
    usual = list(sweep.trials(config, 8))
    assert {trial.schedule for trial in usual} == {"reference", "linear", "cosine"}
    # Nothing else moves.
    assert list(sweep.trials(config, 8, ["constant"])) == [
        dataclasses.replace(trial, schedule="constant") for trial in usual
    ]
    both = sweep.trials(config, 8, ["constant", "linear"])
    assert {trial.schedule for trial in both} == {"constant", "linear"}


def test_sweep_goes_on_where_it_was_and_reads_the_test_set_last(tmp_path, monkeypatch):
    read = []
    load = data.load
    monkeypatch.setattr(data, "load", lambda *a: read.append(a[1]) or load(*a))
    base = dataclasses.replace(BASE, out=tmp_path)
    for name in ("schedule_free", "momentum"):
        config = dataclasses.replace(base, optimizer=name)
        read.clear()
        sweep.sweep(config, 2, [1])
        trials = report.load(tmp_path / "trials" / "results.jsonl")[-2:]
        assert all("test_accuracy" not in row for row in trials)
        # Once, by the run with what was chosen.
        assert read == ["train", "train", "train", "test"]
    finals = report.load(tmp_path / "final" / "results.jsonl")
    assert [row["config"]["seed"] for row in finals] == [1, 1]
    best = sweep_choice.chosen(trials)
    assert best is not None
    for name in ("learning_rate", "schedule", "l2", "optimizer_setting"):
        assert finals[-1]["config"][name] == best["config"][name]

    read.clear()
    rows = sweep.sweep(config, 2, [1])
    assert not read
    assert rows == finals[1:]
    # One trial more is one run more, and perhaps another choice to test.
    sweep.sweep(config, 3, [1])
    assert len(report.load(tmp_path / "trials" / "results.jsonl")) == 5
    tested = sweep.sweep(config, 3, [1], num_tested=2)
    trials = report.load(tmp_path / "trials" / "results.jsonl")[2:]
    best = sweep_choice.ranked(trials)[:2]
    assert list(map(sweep_choice.has_settings_of, tested, best)) == [True, True]
    assert not sweep_choice.has_settings_of(*tested)

    # The same trials again with another seed, on the same held-out images.
    read.clear()
    assert sweep.sweep(config, 3, [1], num_tested=2, repeat_seeds=[4]) == tested
    assert read == ["train", "train"]
    repeats = report.load(tmp_path / "repeats" / "results.jsonl")
    assert list(map(sweep_choice.has_settings_of, repeats, best)) == [True, True]
    assert [row["config"]["seed"] for row in repeats] == [4, 4]
    for row in repeats:
        assert row["config"]["num_validation"] == base.num_validation
        assert "test_accuracy" not in row

    table = sweep_report.summarize(tmp_path)
    assert "momentum" in table
    assert (tmp_path / "table.md").read_text().startswith(table.splitlines()[0])
    assert (tmp_path / "accuracy.png").stat().st_size > 10_000


def write_rows(path, name, epochs, accuracies, rate=1.0, status="finished"):
    """Adds runs with seeds 0, 1, ... to a sweep's file."""
    path.parent.mkdir(exist_ok=True)
    config = dict.fromkeys(sweep_choice.TUNED, 0.0)
    config |= {"optimizer_setting": None, "schedule": "linear"}
    config |= {"optimizer": name, "num_epochs": epochs, "batch_size": 64}
    with path.open("a") as file:
        for seed, accuracy in enumerate(accuracies):
            row = {
                "config": config | {"learning_rate": rate, "seed": seed},
                "status": status,
                "num_steps": 10 * epochs,
                "validation_accuracy": accuracy,
                "validation_loss": 1.0,
                "test_accuracy": accuracy,
                **{"platform": "tpu", "device": "TPU", "date": "2026-11-23"},
                "versions": {"jax": "1", "optax": "2"},
            }
            file.write(json.dumps(row) + "\n")


@pytest.fixture
def finished_sweep(tmp_path):
    trials, final = (tmp_path / n / "results.jsonl" for n in ("trials", "final"))
    write_rows(trials, "sgd", 1, [0.5], rate=1.0)
    write_rows(trials, "sgd", 1, [0.6], rate=2.0)
    write_rows(trials, "lars", 1, [0.7])
    write_rows(trials, "lars", 2, [0.7])
    # Tested when there was one trial, and again when another was found to be better.
    write_rows(final, "sgd", 1, [0.9, 0.9], rate=1.0)
    write_rows(final, "sgd", 1, [0.6, 0.7], rate=2.0)
    write_rows(final, "lars", 1, [0.75, 0.75])
    write_rows(final, "lars", 2, [0.8])
    return tmp_path


@pytest.mark.parametrize(
    ("num_trials", "tested"),
    [
        (None, [("lars", [0.75, 0.75]), ("sgd", [0.6, 0.7])]),
        (1, [("lars", [0.75, 0.75]), ("sgd", [0.9, 0.9])]),
        (2, [("sgd", [0.6, 0.7])]),  # the other had one
        (3, []),
    ],
)
def test_what_the_first_trials_chose(finished_sweep, num_trials, tested):
    rows = sweep_choice.final_runs(finished_sweep, 1, num_trials)
    groups = report.group_rows(rows, "optimizer")
    accuracies = [
        (name, [row["test_accuracy"] for row in same])
        for (name,), same in sorted(groups.items())
    ]
    assert accuracies == tested


def cells(table):
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_repeats_tell_the_best_trials_apart(finished_sweep):
    trials = sweep_choice.trial_groups(finished_sweep)[64, 1, "sgd"]
    lucky, other = sweep_choice.shortlist(finished_sweep, trials, 3)
    assert (lucky.held_out, other.held_out) == ([0.6], [0.5])
    assert [row["test_accuracy"] for row in lucky.tests] == [0.6, 0.7]
    assert sweep_choice.best_by_mean([lucky, other]) is None

    repeats = finished_sweep / "repeats/results.jsonl"
    write_rows(repeats, "sgd", 1, [0.5, 0.3], rate=2.0)
    lucky, other = sweep_choice.shortlist(finished_sweep, trials, 2)
    assert lucky.held_out == [0.6, 0.5, 0.3]
    # The other is not repeated.
    assert sweep_choice.best_by_mean([lucky, other]) is None
    write_rows(repeats, "sgd", 1, [0.55, 0.5], rate=1.0)
    candidates = sweep_choice.shortlist(finished_sweep, trials, 2)
    assert sweep_choice.best_by_mean(candidates) is candidates[1]
    assert sweep_choice.best_by_mean(candidates[:1]) is candidates[0]
    assert sweep_choice.best_by_mean([]) is None

    _, _, line = cells(sweep_report.best_trials(finished_sweep, 2))
    assert line[4:] == [
        "65.00 ± 7.07 (46.67 ± 15.28)",
        "**90.00 ± 0.00** (51.67 ± 2.89)",
        "77.50 ± 15.00",
    ]


def test_best_trials_on_the_test_set(finished_sweep):
    header, _, *lines = cells(sweep_report.best_trials(finished_sweep, 2))
    assert header[3:] == ["trials", "1. (held out)", "2. (held out)", "all"]
    assert lines == [
        [
            *("64", "10", "sgd", "2"),
            "65.00 ± 7.07 (60.00)",
            "90.00 ± 0.00 (50.00)",
            "77.50 ± 15.00",
        ]
    ]
    _, _, *lines = cells(sweep_report.best_trials(finished_sweep, 1))
    assert [line[2] for line in lines] == ["lars", "sgd", "lars"]


def test_only_the_best_by_mean_was_tested(finished_sweep):
    final = finished_sweep / "final/results.jsonl"
    rows = report.load(final)
    final.unlink()
    for row in rows:
        if row["config"]["learning_rate"] == 1.0:
            metrics.append_row(final, row)
    _, _, *lines = cells(sweep_report.best_trials(finished_sweep, 2))
    assert not lines
    for rate, accuracies in (2.0, [0.5, 0.3]), (1.0, [0.55, 0.5]):
        repeats = finished_sweep / "repeats/results.jsonl"
        write_rows(repeats, "sgd", 1, accuracies, rate=rate)
    _, _, line = cells(sweep_report.best_trials(finished_sweep, 2))
    assert line[4:] == [
        "not tested (46.67 ± 15.28)",
        "**90.00 ± 0.00** (51.67 ± 2.89)",
        "",
    ]


def test_short_tables(finished_sweep):
    header, _, *lines = cells(sweep_report.by_steps(finished_sweep))
    assert header == ["optimizer", "10 steps", "20 steps"]
    assert lines == [
        ["lars", "75.00 ± 0.00 @1", "80.00 @1"],
        ["sgd", "65.00 ± 7.07 @2", ""],
    ]
    header, _, *lines = cells(sweep_report.budgets(finished_sweep))
    assert header == ["batch", "steps", "optimizer", "1 trial", "2 trials"]
    assert lines == [
        ["64", "10", "lars", "70.0", ""],
        ["64", "10", "sgd", "55.0", "60.0"],
        ["64", "20", "lars", "70.0", ""],
    ]
    assert (finished_sweep / "budget.png").stat().st_size > 10_000


def test_what_did_not_finish_is_left_out(finished_sweep, tmp_path_factory):
    trials = finished_sweep / "trials/results.jsonl"
    write_rows(trials, "sgd", 3, [0.0], status="given up")
    write_rows(finished_sweep / "final/results.jsonl", "adamw", 2, [np.nan])
    write_rows(trials, "adamw", 2, [0.9])
    sweep_report.summarize(finished_sweep)
    assert "| 30 " not in (finished_sweep / "budget.md").read_text()
    header, _, *lines = cells((finished_sweep / "targets.md").read_text())
    assert header[2:] == ["steps to 75 %", "steps to 77.5 %", "steps to 80 %"]
    assert [line[0] for line in lines if line[2] == "not reached"] == ["adamw", "sgd"]

    nothing = tmp_path_factory.mktemp("nothing")
    write_rows(nothing / "trials/results.jsonl", "sgd", 1, [0.0], status="given up")
    assert sweep_report.summarize(nothing).startswith("No trial finished")


@pytest.mark.parametrize("place", [0, 1])
def test_a_run_that_ended_early_changes_no_length(finished_sweep, place):
    """Nor is one without an accuracy put before those that have one."""
    final = finished_sweep / "final/results.jsonl"
    rows = report.load(final)
    final.unlink()
    groups = report.group_rows(rows, "optimizer", "num_epochs")
    groups["lars", 1][place] |= {"num_steps": 3, "test_accuracy": "nan"}
    for row in itertools.chain(groups["sgd", 1], groups["lars", 2], groups["lars", 1]):
        metrics.append_row(final, row)
    sweep_report.summarize(finished_sweep)
    header, _, *lines = cells((finished_sweep / "table.md").read_text())
    ran = [dict(zip(header, line, strict=True)) for line in lines]
    assert [(row["optimizer"], row["steps"]) for row in ran] == [
        *(("sgd", "10"), ("lars", "10"), ("lars", "20")),
    ]
    assert "| 3 " not in (finished_sweep / "budget.md").read_text()
    header, _, *lines = cells(sweep_report.by_steps(finished_sweep))
    assert header == ["optimizer", "10 steps", "20 steps"]
    assert [line[0] for line in lines] == ["sgd", "lars"]


def test_a_folder_is_of_one_study(tmp_path):
    config = dataclasses.replace(BASE, out=tmp_path)
    sweep.check_study(config)  # there is nothing yet
    (tmp_path / "trials").mkdir()
    row = {"config": checkpoint.settings(dataclasses.replace(config, seed=7, l2=0.3))}
    (tmp_path / "trials/results.jsonl").write_text(json.dumps(row))
    for same in (
        {"optimizer": "lars", "learning_rate": 3.0, "num_epochs": 9},
        {"batch_size": 256, "num_microbatches": 2},
        {"log_every": 3, "give_up_at": 0.5},
    ):
        sweep.check_study(dataclasses.replace(config, **same))
    for name, value, saved in (
        ("model", "'vit'", "'mlp'"),
        ("num_validation", "100", "300"),
        ("num_microbatches", "2", "1"),
    ):
        other = dataclasses.replace(config, **{name: ast.literal_eval(value)})
        with pytest.raises(ValueError, match=f"{name} {saved}, this one has {value}"):
            sweep.check_study(other)
    sweep.check_study(config, [row["config"]["schedule"], "constant"])
    with pytest.raises(ValueError, match="'reference', this one tries constant: pass"):
        sweep.check_study(config, ["constant"])
    # Spaces of others may have other schedules.
    sweep.check_study(dataclasses.replace(config, optimizer="sgd"), ["constant"])


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_best_of_fewer_trials(values):
    rows = [{"status": "finished", "validation_accuracy": x} for x in values]
    rows.append({"status": "given up"})
    values = [*values, 0.0]
    for number in range(1, len(values) + 1):
        best = [max(some) for some in itertools.combinations(values, number)]
        got = sweep_choice.expected_best(rows, number)
        assert got == pytest.approx(100 * np.mean(best))


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.5]), min_size=1, max_size=5),
    st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.6]), min_size=1, max_size=5),
)
def test_chance_to_be_ahead(ours, others):
    def rows(values):
        return [{"status": "finished", "validation_accuracy": x} for x in values]

    for number in range(1, 1 + min(len(ours), len(others))):
        draws = itertools.product(
            itertools.combinations(ours, number), itertools.combinations(others, number)
        )
        leads = [np.sign(max(a) - max(b)) for a, b in draws]
        got = sweep_choice.chance_ahead(rows(ours), rows(others), number)
        assert got == pytest.approx((1 + np.mean(leads)) / 2)
        assert sweep_choice.chance_ahead(
            rows(others), rows(ours), number
        ) == pytest.approx(1 - got)


@pytest.mark.parametrize("log_every", [1, 2, 40])
def test_hopeless_trials_are_given_up(tmp_path, log_every):
    config = dataclasses.replace(
        BASE,
        optimizer="sgd",
        learning_rate=0.0,  # nothing is learnt
        num_epochs=20,
        log_every=log_every,
        give_up_at=0.25,
        out=tmp_path,
    )
    row = sweep.train(config)
    assert row["status"] == "given up"
    assert row["num_steps"] == 20  # ten by ten, the first after 11 of 44 steps
    assert "validation_accuracy" not in row
    assert row["train_loss"] > math.log(10)


@pytest.mark.parametrize(
    "changes",
    [
        {"l2": 0.1},  # whose penalty is larger than the loss of guessing
        {"learning_rate": 7.0, "warmup": 0.0},  # which is above it before, on average
        {"learning_rate": 0.0, "num_epochs": 8},  # ten of whose 17 steps are past half
    ],
)
def test_trials_with_hope_are_not_given_up(tmp_path, changes):
    usual = {"optimizer": "sgd", "learning_rate": 0.1, "num_epochs": 10}
    config = dataclasses.replace(BASE, **usual | changes, give_up_at=0.25, out=tmp_path)
    row = sweep.train(config)
    assert row["status"] == "finished"
    curve = report.load_curve(row, tmp_path)
    before, guessing = slice(10), math.log(10)
    if "l2" in changes:
        assert curve["loss"][before].min() > guessing
    else:
        assert curve["cross_entropy"][before].mean() > guessing
    if "num_epochs" in changes:
        assert row["num_steps"] == 17
        assert curve["cross_entropy"].min() > guessing


def test_steps_to_accuracies():
    def runs(steps, *accuracies):
        row = {"num_steps": steps, "seconds": steps / 10}
        return [row | {"test_accuracy": accuracy} for accuracy in accuracies]

    groups = {
        (64, 1.0, "slow"): runs(5, 0.5, 0.6),
        (64, 1.0, "fast"): runs(5, 0.70, 0.72),
        (64, 4.0, "slow"): runs(20, 0.71, 0.79),
        (64, 4.0, "fast"): runs(20, 0.80, 0.81),
    }
    table = sweep_report.targets(groups, number=2)
    header, _, *lines = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.splitlines()
    )
    assert header == ["optimizer", "batch", "steps to 71 %", "steps to 80.5 %"]
    assert lines == [
        ["fast", "64", "5 (0.5 s)", "20 (2.0 s)"],
        ["slow", "64", "20 (2.0 s)", "not reached"],
    ]


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("--num-tested", "0", "--num-tested must be positive, got 0"),
        ("--num-trials", "-1", "--num-trials must be positive, got -1"),
        ("--num-validation", "0", "--num-validation must be positive, got 0"),
        ("--num-microbatches", "0", "num_microbatches must be positive and finite"),
        ("--num-microbatches", "3", "is not divisible by num_microbatches 3"),
        ("--seeds", "-2", "seed must not be negative, nor infinite, got -2"),
        ("--seeds", "0", "--seeds must not have 0: settings are chosen by it"),
        ("--repeat-seeds", "0", "--repeat-seeds must not have 0: the trials have it"),
        ("--repeat-seeds", "2", "--repeat-seeds must not have 2, a seed of the tests"),
    ],
)
def test_bad_arguments_are_named(argument, value, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["sweep", argument, value])
    with pytest.raises(SystemExit):
        sweep.main()
    assert message in capsys.readouterr().err


def test_a_report_on_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["sweep_report", str(tmp_path)])
    with pytest.raises(SystemExit):
        sweep_report.main()
    assert f"{tmp_path} is no folder of a sweep" in capsys.readouterr().err


def test_rows_from_before_a_setting_was_there(tmp_path, monkeypatch):
    """They are of runs that had it as it is by default."""
    row = {"config": checkpoint.settings(dataclasses.replace(BASE, out=tmp_path))}
    del row["config"]["give_up_at"], row["config"]["optimizer_setting"]
    (tmp_path / "results.jsonl").write_text(json.dumps(row))
    monkeypatch.setattr(sweep, "train", lambda config: "made")
    config = dataclasses.replace(BASE, out=tmp_path)
    assert sweep.run_or_recall(config) == row
    other = dataclasses.replace(config, give_up_at=0.25)
    assert sweep.run_or_recall(other) == "made"
