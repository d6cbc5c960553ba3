"""Runs with wrong learning rates: what they are, and what is made of them."""

import json

import pytest

from benchmarks import rate_sensitivity, report, sweep
from benchmarks.config import Config


def test_width_of_a_curve():
    # Nine tenths of 10 lie a tenth of the way to 0 and a half of that to 8.
    peak = {-2: 0.0, -1: 0.0, 0: 10.0, 1: 8.0, 2: 1.0}
    stretch = rate_sensitivity.stretch
    assert stretch(peak, 0.9) == pytest.approx((-0.05, 0.25))
    assert stretch(peak, 0.8) == pytest.approx((-0.1, 0.5))
    # What rises again farther off does not count, and a scan may end too early.
    assert stretch({0: 10.0, 1: 10.0, 2: 5.0, 3: 10.0}, 0.9) == pytest.approx((0, 0.6))
    assert stretch({-1: 9.5, 1: 10.0}, 0.9) == pytest.approx((-0.5, 0.5))


def test_the_learning_rate_alone_changes():
    changes = rate_sensitivity.changes(Config(learning_rate=0.2))
    assert list(changes) == list(rate_sensitivity.EXPONENTS)
    for exponent, settings in changes.items():
        factor = rate_sensitivity.factor(exponent)
        assert settings == {"learning_rate": pytest.approx(0.2 * factor, rel=0.01)}


def test_from_a_sweep_to_the_table(tmp_path, monkeypatch, capsys):
    base = Config(
        optimizer="sgd",
        batch_size=512,
        num_epochs=3,
        num_validation=300,
        num_devices=1,
        progress=False,
        out=tmp_path,
    )
    sweep.sweep(base, 1, [1])
    monkeypatch.setattr(rate_sensitivity, "EXPONENTS", (0, 4))
    arguments = ["", str(tmp_path), "--num-epochs", "3", "--seeds", "4"]
    monkeypatch.setattr("sys.argv", arguments)
    rate_sensitivity.main()
    rows = report.load(tmp_path / "rates" / "results.jsonl")
    rate = report.load(tmp_path / "trials" / "results.jsonl")[0]["learning_rate"]
    assert [row["learning_rate"] / rate for row in rows] == pytest.approx(
        [1, 100], rel=0.01
    )
    table = (tmp_path / "rates" / "table.md").read_text()
    assert table in capsys.readouterr().out
    assert [cell.strip() for cell in table.splitlines()[2].split("|")][1] == "sgd"
    assert (tmp_path / "rates" / "accuracy.png").stat().st_size > 10_000
    # What is there is not run again.
    monkeypatch.setattr(sweep, "train", None)
    rate_sensitivity.main()

    monkeypatch.setattr("sys.argv", [*arguments[:3], "7"])
    with pytest.raises(SystemExit):
        rate_sensitivity.main()
    assert "has no trials of 7 epochs" in capsys.readouterr().err

    trials = tmp_path / "trials" / "results.jsonl"
    (row,) = report.load(trials)
    row["config"]["batch_size"] = 64
    with trials.open("a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(SystemExit):
        rate_sensitivity.main()
    assert "has batch sizes 64, 512: the study" in capsys.readouterr().err
