"""Runs with more and with less of the past: what they are, and what is made of them."""

import dataclasses

import pytest

from benchmarks import past_sensitivity, report, sweep
from benchmarks.config import Config

TUNED = Config(
    optimizer="momentum",
    batch_size=512,
    num_epochs=3,
    num_validation=300,
    num_devices=1,
    optimizer_setting=0.9,
    learning_rate=0.2,
    progress=False,
)


def test_every_share_has_every_rate():
    changes = past_sensitivity.changes(TUNED)
    assert len(changes) == len(past_sensitivity.SHARES) * len(past_sensitivity.FACTORS)
    for (share, factor), settings in changes.items():
        assert settings == {
            "optimizer_setting": share,
            "learning_rate": pytest.approx(0.2 * factor, rel=0.01),
        }


@pytest.mark.parametrize(
    ("name", "setting"), [("sgd", None), ("adamw", 0.99), ("nlcg_hutchinson", 0.1)]
)
def test_an_optimizer_without_such_a_setting(name, setting):
    config = dataclasses.replace(TUNED, optimizer=name, optimizer_setting=setting)
    with pytest.raises(SystemExit, match=f"{name} has no setting for the past"):
        past_sensitivity.changes(config)


def test_from_a_sweep_to_the_table(tmp_path, monkeypatch, capsys):
    sweep.sweep(dataclasses.replace(TUNED, out=tmp_path), 1, [1])
    arguments = ["", str(tmp_path), "--num-epochs", "3", "--seeds", "4"]
    arguments += ["--shares", "0.5", "0.9", "--factors", "100"]
    monkeypatch.setattr("sys.argv", arguments)
    past_sensitivity.main()
    rows = report.load(tmp_path / "past" / "results.jsonl")
    rate = report.load(tmp_path / "trials" / "results.jsonl")[0]["learning_rate"]
    made = [(r["config"]["optimizer_setting"], r["learning_rate"] / rate) for r in rows]
    assert made == [
        (share, pytest.approx(factor, rel=0.01))
        for share in (0.5, 0.9)
        for factor in (1, 100)
    ]
    assert all("test_accuracy" not in row for row in rows)
    table = (tmp_path / "past" / "table.md").read_text()
    assert table in capsys.readouterr().out
    lines = [[c.strip() for c in x.split("|")[1:-1]] for x in table.splitlines()[2:4]]
    assert [line[:4] for line in lines] == [
        ["momentum", f"{rate:g}", "momentum", share] for share in ("0.5", "0.9")
    ]
    highest = max(100 * row["validation_accuracy"] for row in rows)
    assert f"**{highest:.2f}**" in table
    assert (tmp_path / "past" / "accuracy.png").stat().st_size > 10_000
    # What is there is not run again.
    monkeypatch.setattr(sweep, "train", None)
    past_sensitivity.main()
