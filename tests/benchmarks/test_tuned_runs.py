"""Runs that a sweep has tuned, changed in what is asked and nothing else."""

import dataclasses
import pathlib

import pytest

from benchmarks import metrics, tuned_runs
from benchmarks.config import Config

CHOSEN = Config(learning_rate=0.2, num_validation=300, give_up_at=0.25)


@pytest.mark.parametrize("changes", [{}, {"warmup": 0.2, "optimizer": "sgd"}])
def test_nothing_else_changes(changes):
    row = {"config": dataclasses.asdict(CHOSEN)}
    data, out = pathlib.Path("d"), pathlib.Path("o")
    runs = list(tuned_runs.changed(row, changes, [4, 5], data, out))
    assert [config.seed for config in runs] == [4, 5]
    for config in runs:
        assert config.num_validation == 300  # the test set is not read
        assert config.give_up_at is None
        fixed = {"seed": config.seed, "give_up_at": None, "data_dir": data, "out": out}
        assert config == dataclasses.replace(CHOSEN, **changes, **fixed)


def test_an_optimizer_without_trials_is_named(tmp_path, monkeypatch, capsys):
    trial = {"config": dataclasses.asdict(CHOSEN), "status": "given up"}
    metrics.append_row(tmp_path / "trials/results.jsonl", trial)
    arguments = ["", str(tmp_path), "--num-epochs", "30", "--optimizers", "nclg"]
    for names, message in (
        (["nclg", "momentum"], "no trials of nclg, but of momentum"),
        (["momentum"], "no trials of 30 epochs that finished"),
    ):
        monkeypatch.setattr("sys.argv", arguments[:5] + names)
        with pytest.raises(SystemExit):
            tuned_runs.parse("A study.", "study")
        assert message in capsys.readouterr().err


def test_the_tuning_seed_is_refused(monkeypatch, capsys):
    arguments = ["", "sweep", "--num-epochs", "1", "--seeds", "0", "4"]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit):
        tuned_runs.parse("A study.", "study")
    assert "--seeds must not have 0" in capsys.readouterr().err


def test_a_folder_without_trials_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["", str(tmp_path), "--num-epochs", "1"])
    with pytest.raises(SystemExit):
        tuned_runs.parse("A study.", "study")
    assert f"{tmp_path} is no folder of a sweep" in capsys.readouterr().err
