"""The best runs of a study are repeated, and the best of those tested."""

import dataclasses

import numpy as np
import pytest

from benchmarks import choose_again, report, sweep
from benchmarks.config import Config

BASE = Config(
    optimizer="momentum",
    batch_size=512,
    num_epochs=2,
    num_validation=300,
    num_devices=1,
    optimizer_setting=0.9,
    progress=False,
)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Three settings with one seed, of which the first learns nothing."""
    out = tmp_path_factory.mktemp("past")
    for rate in (1e-6, 0.1, 0.3):
        sweep.train(dataclasses.replace(BASE, learning_rate=rate, seed=4, out=out))
    return out


def test_from_a_study_to_the_table(study, monkeypatch, capsys):
    arguments = [str(study), "--num-repeated", "2"]
    arguments += ["--repeat-seeds", "6", "--seeds", "1", "2"]
    choose_again.main(arguments)
    tried = report.load(study / "results.jsonl")
    repeats = report.load(study / "repeats" / "results.jsonl")
    assert {row["learning_rate"] for row in repeats} == {0.1, 0.3}
    assert [row["config"]["seed"] for row in repeats] == [6, 6]
    means = {
        rate: np.mean(
            [
                row["validation_accuracy"]
                for row in tried + repeats
                if row["learning_rate"] == rate
            ]
        )
        for rate in (0.1, 0.3)
    }
    chosen = max(means, key=lambda rate: means[rate])
    final = report.load(study / "final" / "results.jsonl")
    assert [(row["learning_rate"], row["config"]["seed"]) for row in final] == [
        (chosen, 1),
        (chosen, 2),
    ]
    text = (study / "choice.md").read_text()
    assert text in capsys.readouterr().out
    cells = [cell.strip() for cell in text.splitlines()[2].split("|")[1:-1]]
    assert cells[:6] == ["momentum", "512", "5", "3", f"{chosen:g}", "momentum 0.9"]
    assert cells[6].startswith(f"{100 * means[chosen]:.2f} ±")
    mean = np.mean([100 * row["test_accuracy"] for row in final])
    assert cells[7].startswith(f"{mean:.2f} ±")
    # What is there is not run again.
    monkeypatch.setattr(sweep, "train", None)
    choose_again.main(arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--repeat-seeds", "4"], "--repeat-seeds must not have 4"),
        (["--seeds", "6"], "--seeds must not have 6: settings are chosen by it"),
        (["--seeds", "0"], "--seeds must not have 0"),
        (["--num-repeated", "0"], "--num-repeated must be positive, got 0"),
    ],
)
def test_bad_arguments(study, arguments, message, capsys):
    with pytest.raises(SystemExit):
        choose_again.main([str(study), *arguments])
    assert message in capsys.readouterr().err


def test_a_folder_without_a_study(tmp_path, capsys):
    with pytest.raises(SystemExit):
        choose_again.main([str(tmp_path)])
    assert f"{tmp_path} is no folder of a study" in capsys.readouterr().err
