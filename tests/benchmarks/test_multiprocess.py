"""Training on several processes, each with devices and data of its own."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import report

NUM_DEVICES = 4
NUM_STEPS = 12
TIME_LIMIT = 240

# Every process compiles the same program: better quickly than well.
QUICK_TO_COMPILE = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

COMMAND = [
    *("--config", "digits", "--optimizer", "nlcg", "--batch-size", "472"),
    *("--num-microbatches", "4", "--num-devices", "None", "--num-epochs", "4"),
    *("--augment", "--log-every", "4", "--no-progress"),
]

# The trainer as from the command line. One process gets SIGTERM at its third step, as a
# machine that is to be taken away does, and steps are slow enough for the others to
# hear of it.
INTERRUPTED = """
import os, runpy, signal, sys, time
import jax
from benchmarks import checkpoint

reached = checkpoint.StopRequest.reached

def signal_and_ask(self, step):
    time.sleep(0.3)
    if step == 3 and jax.process_index() == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return reached(self, step)

checkpoint.StopRequest.reached = signal_and_ask
runpy.run_module("benchmarks.train", run_name="__main__")
"""


def start(arguments, num_devices):
    return subprocess.Popen(
        [sys.executable, *arguments],
        env={
            **os.environ,
            "JAX_NUM_CPU_DEVICES": str(num_devices),
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {QUICK_TO_COMPILE}",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_processes(arguments, num_processes):
    """Starts processes that find each other and waits for all; returns exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = ["--coordinator-address", f"127.0.0.1:{port}"]
    shared += ["--num-processes", str(num_processes)]
    processes = [
        start(
            [*arguments, *shared, "--process-id", str(i)], NUM_DEVICES // num_processes
        )
        for i in range(num_processes)
    ]
    try:
        outputs = [process.communicate(timeout=TIME_LIMIT) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], outputs


def train(folder: pathlib.Path, *more: str) -> list[str]:
    return [*COMMAND, "--out", str(folder), *more]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    process = start(["-m", "benchmarks.train", *train(folder)], NUM_DEVICES)
    _, errors = process.communicate(timeout=TIME_LIMIT)
    assert process.returncode == 0, errors
    return folder


def assert_same_results(folder, expected_folder):
    (row,) = report.load(folder / "results.jsonl")  # written once, by one process
    (expected,) = report.load(expected_folder / "results.jsonl")
    assert row["status"] == "finished"
    assert row["num_devices"] == NUM_DEVICES
    for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
        np.testing.assert_allclose(row[name], expected[name], rtol=1e-5)
    curve = report.load_curve(row, folder)
    expected_curve = report.load_curve(expected, expected_folder)
    assert curve["step"].tolist() == list(range(NUM_STEPS))
    for name in ("loss", "beta", "scale"):
        np.testing.assert_allclose(curve[name], expected_curve[name], rtol=1e-5)
    return row


@pytest.mark.parametrize("num_processes", [2, 4])
def test_processes_together_train_as_one(tmp_path, one_process, num_processes):
    codes, outputs = run_processes(
        ["-m", "benchmarks.train", *train(tmp_path)], num_processes
    )
    assert codes == [0] * num_processes, outputs
    row = assert_same_results(tmp_path, one_process)
    assert row["num_processes"] == num_processes
    # Only the first has anything to say.
    assert "finished" in outputs[0][0]
    assert all("finished" not in out for out, _ in outputs[1:])


def test_sigterm_to_one_process_saves_all_and_one_process_goes_on(
    tmp_path, one_process
):
    checkpoints = "--checkpoint-dir", str(tmp_path / "checkpoints")
    codes, outputs = run_processes(
        ["-c", INTERRUPTED, *train(tmp_path, *checkpoints)], 2
    )
    assert codes == [128 + signal.SIGTERM] * 2, outputs
    assert "interrupted" in outputs[0][0]
    (saved,) = (p for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit())
    assert 3 < int(saved.name) < NUM_STEPS
    assert not (tmp_path / "results.jsonl").exists()
    record = json.loads((saved / "record" / "metadata").read_text())
    assert len((tmp_path / f"{record['run']}.jsonl").read_text().splitlines()) == int(
        saved.name
    )

    process = start(
        ["-m", "benchmarks.train", *train(tmp_path, *checkpoints)], NUM_DEVICES
    )
    _, errors = process.communicate(timeout=TIME_LIMIT)
    assert process.returncode == 0, errors
    row = assert_same_results(tmp_path, one_process)
    assert row["resumed_at"] == [int(saved.name)]
    assert row["num_processes"] == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--process-id", "0"], "belong together"),
        (["--num-processes", "2", "--process-id", "1"], "belong together"),
    ],
)
def test_incomplete_addresses_are_refused(tmp_path, more, message):
    process = start(["-m", "benchmarks.train", *train(tmp_path, *more)], 1)
    _, errors = process.communicate(timeout=TIME_LIMIT)
    assert process.returncode == 2
    assert message in errors
