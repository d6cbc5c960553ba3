"""Choices of a tuned run, changed one at a time."""

import dataclasses

import numpy as np
import pytest

from benchmarks import levers, optimizers, report, sweep
from benchmarks.config import Config

TUNED = Config(
    optimizer="nlcg_muon",
    batch_size=512,
    num_epochs=3,
    num_validation=300,
    num_devices=1,
    learning_rate=0.1,
    schedule="linear",
    warmup=0.05,
    weight_decay=0.01,
    l2=0.0,
    optimizer_setting=0.9,
    progress=False,
)


@pytest.mark.parametrize("name", ["nlcg_muon", "nlcg", "muon", "adamw", "sgd"])
def test_every_lever_changes_one_choice(name):
    setting = 0.9 if name in optimizers.SETTINGS else None
    config = dataclasses.replace(
        TUNED, optimizer=name, optimizer_setting=setting, num_microbatches=4
    )
    changes = levers.levers(config)
    assert len(changes) > 10
    fields = {
        tuple(f for f, v in change.items() if getattr(config, f) != v)
        for change in changes.values()
    }
    one = {"learning_rate", "schedule", "warmup", "weight_decay", "label_smoothing"}
    one |= {"ema_decay", "num_microbatches"}
    one |= {"optimizer_setting"} if name not in ("adamw", "sgd") else set()
    one |= {"optimizer"} if name.startswith("nlcg") else set()
    # Decay in the loss in place of the other.
    assert fields == {(field,) for field in one} | {("weight_decay", "l2")}
    for change in changes.values():
        altered = dataclasses.replace(config, **change)
        assert altered != config
        setting = altered.optimizer_setting
        optimizers.build(altered.optimizer, 0.1, setting=setting)


def test_what_was_chosen_is_no_lever():
    names = levers.levers(TUNED)
    assert "schedule cosine" in names
    assert "schedule linear" not in names
    assert {"warm-up 0.1", "nothing of the past"} <= set(names)
    other = dataclasses.replace(TUNED, optimizer_setting=0.0, warmup=0.1)
    assert not {"warm-up 0.1", "nothing of the past"} & set(levers.levers(other))
    assert "batch statistics of 512" not in names


def test_differences_are_within_a_seed():
    def rows(*accuracies):
        return [{"status": "finished", "validation_accuracy": a} for a in accuracies]

    given = {levers.AS_CHOSEN: rows(0.1, 0.3), "lever": rows(0.12, 0.31)}
    given["unstable"] = [*rows(0.1), {"status": "diverged"}]
    result = levers.differences(given)
    assert list(result) == ["lever", "unstable"]
    np.testing.assert_allclose(result["lever"], [2.0, 1.0])
    np.testing.assert_allclose(result["unstable"], [0.0, -30.0])


def test_from_a_sweep_to_the_table(tmp_path, monkeypatch, capsys):
    for name in "sgd", "adamw":
        sweep.sweep(dataclasses.replace(TUNED, optimizer=name, out=tmp_path), 1, [1])

    def two(config):
        return {
            "no averaging of weights": {"ema_decay": 0.0},
            "ten times the rate": {"learning_rate": 10 * config.learning_rate},
        }

    monkeypatch.setattr(levers, "levers", two)
    monkeypatch.setattr("sys.argv", ["", str(tmp_path), "--num-epochs", "3"])
    levers.main()
    table = (tmp_path / "levers" / "table.md").read_text()
    assert table in capsys.readouterr().out
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.splitlines()[:5]
    ]
    assert cells[0] == ["changed", "sgd", "adamw"]
    assert cells[2][0] == levers.AS_CHOSEN
    assert {cells[3][0], cells[4][0]} == set(two(TUNED))
    rows = report.load(tmp_path / "levers" / "results.jsonl")
    assert len(rows) == 2 * 3 * 2
    of_sgd = [row for row in rows if row["config"]["optimizer"] == "sgd"]
    chosen, plain = (
        100 * np.array([row["validation_accuracy"] for row in of_sgd[i : i + 2]])
        for i in (0, 2)
    )
    (line,) = [line for line in cells if line[0] == "no averaging of weights"]
    assert line[1].split(" ")[0] == f"{np.mean(plain - chosen):+.2f}"
    assert (tmp_path / "levers" / "levers.png").stat().st_size > 10_000
    # What is there is not run again.
    monkeypatch.setattr(sweep, "train", None)
    levers.main()
