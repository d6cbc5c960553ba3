"""Runs that a sweep has tuned, changed in what is asked and nothing else."""

import dataclasses
import json
import pathlib

import pytest

from benchmarks import tuned_runs
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


def test_the_choice_may_be_among_the_first_trials(tmp_path, monkeypatch):
    out = tmp_path / "trials" / "results.jsonl"
    out.parent.mkdir()
    accuracies = 0.1, 0.3, 0.2, 0.4
    out.write_text(
        "".join(
            json.dumps(
                {
                    "status": "finished",
                    "validation_accuracy": accuracy,
                    "validation_loss": 1.0,
                    "config": {"optimizer": "sgd", "num_epochs": 1, "batch_size": 8},
                }
            )
            + "\n"
            for accuracy in accuracies
        )
    )
    arguments = ["", str(tmp_path), "--num-epochs", "1"]
    for first, best in {(): 0.4, ("--num-trials", "3"): 0.3}.items():
        monkeypatch.setattr("sys.argv", [*arguments, *first])
        _, choices = tuned_runs.parse("A study.", "study")
        assert choices["sgd"]["validation_accuracy"] == best


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--seeds", "0", "4"], "--seeds must not have 0"),
        (["--num-trials", "0"], "--num-trials must be positive, got 0"),
    ],
)
def test_bad_arguments_are_refused(given, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["", "sweep", "--num-epochs", "1", *given])
    with pytest.raises(SystemExit):
        tuned_runs.parse("A study.", "study")
    assert message in capsys.readouterr().err
