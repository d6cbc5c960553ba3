"""Tuned settings are carried to another network unchanged."""

import dataclasses

import pytest

from benchmarks import checkpoint, report, sweep, transfer
from benchmarks.config import Config

BASE = Config(
    batch_size=512, num_epochs=2, num_validation=300, num_devices=1, progress=False
)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep")
    for name in ("adamw", "nlcg_adam"):
        sweep.sweep(dataclasses.replace(BASE, optimizer=name, out=out), 1, [1])
    return out


def test_nothing_but_the_network_changes(tuned, tmp_path, capsys):
    arguments = [str(tuned), "--model", "vit", "--no-progress"]
    arguments += ["--out", str(tmp_path), "--optimizers", "nlcg_adam"]
    transfer.main(arguments)
    (after,) = report.load(tmp_path / "results.jsonl")
    _, before = report.load(tuned / "final" / "results.jsonl")
    assert after["config"]["model"] == "vit"
    assert after["num_parameters"] != before["num_parameters"]
    kept = sweep.identity(before["config"]) | {"model": "vit"}
    assert sweep.identity(after["config"]) == kept

    # Another optimizer adds to what is there.
    transfer.main([*arguments, "adamw"])
    rows = report.load(tmp_path / "results.jsonl")
    assert [row["config"]["optimizer"] for row in rows] == ["nlcg_adam", "adamw"]
    assert rows[0] == after
    text = (tmp_path / "table.md").read_text()
    header, _, *lines = text.splitlines()[:4]
    assert "mlp, tuned" in header
    assert len(lines) == 2
    assert text in capsys.readouterr().out


def test_runs_that_a_sweep_has_not_tested(tuned, tmp_path, capsys):
    arguments = [str(tuned), "--model", "vit", "--out", str(tmp_path)]
    with pytest.raises(SystemExit):
        transfer.main([*arguments, "--num-epochs", "3"])
    assert f"{tuned} has tested no such runs" in capsys.readouterr().err


def test_table_of_networks():
    def row(optimizer, model, accuracy):
        config = checkpoint.settings(
            dataclasses.replace(BASE, optimizer=optimizer, model=model)
        )
        return {
            "config": config,
            "num_steps": 10,
            **({} if accuracy is None else {"test_accuracy": accuracy}),
            **{"platform": "tpu", "device": "TPU", "date": "2026-11-24"},
            "versions": {"jax": "1", "optax": "2"},
        }

    tuned = [row("sgd", "mlp", 0.5), row("lars", "mlp", 0.4), row("muon", "mlp", 0.6)]
    others = [row("sgd", "vit", 0.2), row("lars", "vit", 0.3), row("sgd", "vit", 0.3)]
    others += [row("adamw", "vit", None)]  # diverged
    lines = transfer.table(tuned, others).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["optimizer", "steps", "mlp, tuned", "vit"]
    assert cells[2] == ["lars", "10", "40.00", "30.00"]
    assert cells[3] == ["sgd", "10", "50.00", "25.00 ± 7.07"]
    assert cells[4] == ["adamw", "10", "", "nan"]

    # Runs of another length are not averaged with these.
    longer = row("sgd", "vit", 0.9)
    longer |= {"config": longer["config"] | {"num_epochs": 9}, "num_steps": 45}
    *_, last, _, _ = transfer.table(tuned, [*others, longer]).splitlines()
    assert [cell.strip() for cell in last.strip("|").split("|")] == [
        *("sgd", "45", "", "90.00")
    ]
