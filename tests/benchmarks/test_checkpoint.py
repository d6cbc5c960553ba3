"""Checkpoints: a run that was stopped, however, ends as if it had not been."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from benchmarks import checkpoint, metrics, report, train
from benchmarks.config import Config

# Twelve steps, in two microbatches, with an estimate of the Hessian every five.
RUN = Config(
    optimizer="nlcg_hutchinson",
    batch_size=472,
    num_microbatches=2,
    num_devices=1,
    num_epochs=4,
    refresh_every=5,
    log_every=3,
    checkpoint_every=4,
    augment=True,
    progress=False,
)
NUM_STEPS = 12


def in_folder(folder: pathlib.Path, **changes) -> Config:
    return dataclasses.replace(
        RUN, out=folder, checkpoint_dir=str(folder / "checkpoints"), **changes
    )


def saved_steps(folder: pathlib.Path) -> list[int]:
    names = [path.name for path in (folder / "checkpoints").iterdir()]
    return sorted(int(name) for name in names if name.isdigit())


def final_state(folder: pathlib.Path):
    """Every array of the last checkpoint, read without the trainer."""
    path = folder / "checkpoints" / str(NUM_STEPS) / "state"
    with ocp.StandardCheckpointer() as checkpointer:
        like = checkpointer.metadata(path).item_metadata
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
            dict(like.items()),
        )
        return checkpointer.restore(path, like)


def signal_at(monkeypatch, step: int, number: signal.Signals) -> None:
    """Has the process told to stop at a step."""
    reached = checkpoint.StopRequest.reached

    def signal_and_ask(self, at):
        if at == step:
            os.kill(os.getpid(), number)
        return reached(self, at)

    monkeypatch.setattr(checkpoint.StopRequest, "reached", signal_and_ask)


@pytest.fixture(scope="module", autouse=True)
def compilation_cache(tmp_path_factory):
    """All runs here are the same program: it is compiled once."""
    folder = str(tmp_path_factory.mktemp("compiled"))
    settings = {
        "jax_compilation_cache_dir": folder,
        "jax_persistent_cache_min_compile_time_secs": 0.1,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    environment = {name.upper(): str(value) for name, value in settings.items()}
    yield {**os.environ, **environment, "JAX_NUM_CPU_DEVICES": "8"}
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    row = train.train(in_folder(folder))
    assert row["status"] == "finished"
    assert row["resumed_at"] == []
    return folder, row


def assert_same_run(folder, row, uninterrupted, exactly=True):
    """Compares final states, result rows and curves."""
    expected_folder, expected = uninterrupted
    close = {"rtol": 0, "atol": 0} if exactly else {"rtol": 1e-4, "atol": 1e-5}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **close),
        final_state(folder),
        final_state(expected_folder),
    )
    for name in ("train_loss", "test_loss"):
        np.testing.assert_allclose(row[name], expected[name], **close)
    # On other devices XLA counts other FLOPs.
    assert (
        not exactly or row["gradient_equivalents"] == expected["gradient_equivalents"]
    )
    curve = report.load_curve(row, folder)
    expected_curve = report.load_curve(expected, expected_folder)
    assert curve["step"].tolist() == list(range(NUM_STEPS))
    assert np.all(np.diff(curve["seconds"]) > 0)
    for name in ("loss", "beta", "scale"):
        np.testing.assert_allclose(curve[name], expected_curve[name], **close)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_told_to_stop_saves_and_goes_on(
    tmp_path, monkeypatch, uninterrupted, number
):
    with monkeypatch.context() as patch:
        signal_at(patch, 7, number)  # between two checkpoints
        row = train.train(in_folder(tmp_path))
    assert row["status"] == "interrupted"
    assert row["num_steps"] == 7
    assert saved_steps(tmp_path)[-1] == 7
    assert not (tmp_path / "results.jsonl").exists()
    row = train.train(in_folder(tmp_path))
    assert row["status"] == "finished"
    assert row["resumed_at"] == [7]
    assert_same_run(tmp_path, row, uninterrupted)
    # Signals are as they were before.
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


# The run that is to be killed, in a process of its own. Where a checkpoint is only
# renamed into place once it is complete, keeping it from being renamed leaves it half
# written for as long as the process lives.
KILLED = """
import os, signal, sys, time
from benchmarks import checkpoint, train
from tests.benchmarks.test_checkpoint import in_folder
import pathlib

folder, where = pathlib.Path(sys.argv[1]), sys.argv[2]
save = checkpoint.Checkpoints.save
reached = checkpoint.StopRequest.reached

def kill_while_writing(self, step, *rest):
    if step == 8:
        self._manager.wait_until_finished()  # with the checkpoint before
        os.rename = lambda *args, **kwargs: time.sleep(600)
        save(self, step, *rest)
        while not any("8" in p.name for p in (folder / "checkpoints").iterdir()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, step, *rest)

def kill_between(self, step):
    if step == 7:
        while not (folder / "checkpoints" / "4").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return reached(self, step)

if where == "writing":
    checkpoint.Checkpoints.save = kill_while_writing
else:
    checkpoint.StopRequest.reached = kill_between
train.train(in_folder(folder))
"""


@pytest.mark.parametrize("where", ["training", "writing"])
def test_killed_run_goes_on_from_its_last_complete_checkpoint(
    tmp_path, uninterrupted, compilation_cache, where
):
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), where],
        env=compilation_cache,
        timeout=180,
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert saved_steps(tmp_path) == [4]
    unfinished = [p for p in (tmp_path / "checkpoints").iterdir() if p.name != "4"]
    assert bool(unfinished) == (where == "writing")
    row = train.train(in_folder(tmp_path))
    assert row["resumed_at"] == [4]
    assert_same_run(tmp_path, row, uninterrupted)


def test_run_goes_on_with_other_devices(tmp_path, monkeypatch, uninterrupted):
    with monkeypatch.context() as patch:
        signal_at(patch, 6, signal.SIGTERM)
        train.train(in_folder(tmp_path))
    row = train.train(in_folder(tmp_path, num_devices=2))
    assert row["resumed_at"] == [6]
    assert_same_run(tmp_path, row, uninterrupted, exactly=False)


def test_stopped_by_its_last_step(tmp_path, monkeypatch):
    """Such a run is whole: what it ends with is not that of an earlier checkpoint."""
    changes = {"optimizer": "sgd", "num_validation": 300}
    expected = train.train(in_folder(tmp_path / "whole", **changes))
    with monkeypatch.context() as patch:
        signal_at(patch, NUM_STEPS, signal.SIGTERM)
        row = train.train(in_folder(tmp_path / "stopped", **changes))
    for name in ("status", "num_steps", "validation_accuracy", "validation_loss"):
        assert row[name] == expected[name]
    assert saved_steps(tmp_path / "stopped") == saved_steps(tmp_path / "whole")


def test_finished_run_is_not_trained_again(uninterrupted):
    folder, expected = uninterrupted
    before = (folder / expected["curve"]).read_text()
    row = train.train(in_folder(folder))
    assert row["test_loss"] == expected["test_loss"]
    assert row["train_loss"] == expected["train_loss"]
    assert row["seconds"] == expected["seconds"]
    assert (folder / expected["curve"]).read_text() == before


def test_finished_run_has_one_row(uninterrupted):
    folder, expected = uninterrupted
    train.train(in_folder(folder))
    (row,) = report.load(folder / "results.jsonl")
    assert row["run"] == expected["run"]
    # Killed after its last checkpoint and before its row, it gets one.
    (folder / "results.jsonl").unlink()
    train.train(in_folder(folder))
    (row,) = report.load(folder / "results.jsonl")
    assert row["test_loss"] == expected["test_loss"]


def test_other_settings_are_refused(uninterrupted):
    folder, _ = uninterrupted
    with pytest.raises(ValueError, match=r"with l2 0\.0002, this one has 0\.1: pass"):
        train.train(in_folder(folder, l2=0.1))
    # What does not change the result may change.
    assert train.train(in_folder(folder, checkpoint_every=5))["num_steps"] == NUM_STEPS


def test_best_has_the_least_loss_where_no_images_are_held_out(uninterrupted):
    folder, row = uninterrupted
    losses = report.load_curve(row, folder)["cross_entropy"]
    means = [losses[max(0, k - train.JUDGED_OVER) : k].mean() for k in (4, 8, 12)]
    assert means == sorted(means, reverse=True)
    assert saved_steps(folder) == [12]  # the best is the last


@pytest.mark.parametrize("stopped_at", [7, 11])
@pytest.mark.parametrize("learning_rate", [0.0, 1e4])
def test_run_that_was_stopped_is_judged_as_without(
    tmp_path, monkeypatch, stopped_at, learning_rate
):
    """At step ten, by the ten losses before, of which the stop may be in the middle."""
    changes = {"optimizer": "sgd", "learning_rate": learning_rate, "give_up_at": 0.25}
    changes |= {"schedule": "constant", "warmup": 0.9, "num_epochs": 8}  # 24 steps
    expected = train.train(in_folder(tmp_path / "whole", **changes))
    with monkeypatch.context() as patch:
        signal_at(patch, stopped_at, signal.SIGTERM)
        train.train(in_folder(tmp_path / "stopped", **changes))
    row = train.train(in_folder(tmp_path / "stopped", **changes))
    for name in ("status", "num_steps", "train_loss"):
        assert row[name] == expected[name]


def test_error_in_training_keeps_the_checkpoint_being_written(tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    reached = checkpoint.StopRequest.reached

    def fail(self, at):
        if at == 5:
            raise OSError("a damaged image")
        return reached(self, at)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.StopRequest, "reached", fail)
        with pytest.raises(OSError, match="damaged"):
            train.train(in_folder(tmp_path))
    assert saved_steps(tmp_path) == [4]
    assert signal.getsignal(signal.SIGTERM) == before
    assert train.train(in_folder(tmp_path))["resumed_at"] == [4]


def test_runs_of_one_second_have_curves_of_their_own(tmp_path):
    names = []
    for _ in range(3):
        names.append(metrics.unused_name(tmp_path, "run"))
        metrics.CurveWriter(tmp_path / f"{names[-1]}.jsonl").close()
    assert names == ["run", "run-2", "run-3"]


def test_a_row_that_was_cut_off_costs_no_other(tmp_path, capsys):
    path = tmp_path / "results.jsonl"
    metrics.append_run(path, {"run": "a", "loss": 1.0})
    with path.open("a") as file:
        file.write('{"run": "b", "lo')  # killed in the middle of a line
    for _ in range(2):
        metrics.append_run(path, {"run": "c", "loss": 3.0})
    assert [row["run"] for row in report.load(path)] == ["a", "c"]
    assert "results.jsonl:2: left out" in capsys.readouterr().out


def test_best_and_last_are_kept(tmp_path, monkeypatch):
    accuracies = iter([0.5, 0.9, 0.7])
    monkeypatch.setattr(
        train.evaluation,
        "evaluate",
        lambda *args: {"loss": 1.0, "accuracy": next(accuracies)},
    )
    row = train.train(in_folder(tmp_path, num_validation=10, optimizer="sgd"))
    assert saved_steps(tmp_path) == [8, 12]
    assert row["validation_accuracy"] == 0.7
    record = tmp_path / "checkpoints" / "8" / "record" / "metadata"
    assert json.loads(record.read_text())["config"]["num_validation"] == 10


def test_curve_drops_what_followed_the_checkpoint(tmp_path):
    path = tmp_path / "curve.jsonl"
    curve = metrics.CurveWriter(path)
    for step in range(5):
        curve.write(step, {"loss": step})
    curve.close()
    with path.open("a") as file:
        file.write('{"step": 5, "lo')  # killed in the middle of a line
    curve = metrics.CurveWriter(path, first_step=3)
    curve.write(3, {"loss": 30})
    curve.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["loss"] for line in lines] == [0, 1, 2, 30]
