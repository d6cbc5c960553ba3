"""The trainer on images in folders."""

import dataclasses
import os
import signal

import numpy as np
import pytest

pytest.importorskip("PIL.Image", reason="Pillow is not installed")
pytest.importorskip("grain", reason="Grain is not installed")

from benchmarks import checkpoint, report, train
from benchmarks.config import Config
from tests.benchmarks.image_files import write_image

RUN = Config(
    dataset="image_folder",
    image_size=8,
    num_workers=0,
    model="mlp",
    optimizer="nlcg",
    batch_size=6,
    num_microbatches=2,
    num_devices=1,
    num_epochs=2,
    schedule="constant",
    log_every=2,
    progress=False,
)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Two classes of nine images to train on and of two to evaluate."""
    root = tmp_path_factory.mktemp("images")
    for split, count in (("train", 9), ("val", 2)):
        for label, name in enumerate(["n01", "n02"]):
            for i in range(count):
                path = root / split / name / f"{i}.JPEG"
                write_image(path, 100 * label + 10 * count + i, 20, 16 + i)
    return root


def test_a_stopped_run_goes_on_with_the_same_images(data_dir, tmp_path, monkeypatch):
    config = dataclasses.replace(RUN, data_dir=data_dir, out=tmp_path / "whole")
    expected = train.train(config)
    assert expected["status"] == "finished"
    assert expected["num_steps"] == 6
    assert np.isfinite(expected["test_loss"])
    assert expected["test_accuracy"] in (0, 0.25, 0.5, 0.75, 1)

    config = dataclasses.replace(
        config, out=tmp_path, checkpoint_dir=str(tmp_path / "checkpoints")
    )
    reached = checkpoint.StopRequest.reached

    def stop_at_step_3(self, step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return reached(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.StopRequest, "reached", stop_at_step_3)
        assert train.train(config)["status"] == "interrupted"
    row = train.train(config)
    assert row["status"] == "finished"
    assert row["resumed_at"]
    for name in ("train_loss", "test_loss", "test_accuracy"):
        assert row[name] == expected[name]
    np.testing.assert_array_equal(
        report.load_curve(row, tmp_path)["loss"],
        report.load_curve(expected, tmp_path / "whole")["loss"],
    )


def test_images_can_be_held_out(data_dir, tmp_path):
    row = train.train(
        dataclasses.replace(RUN, data_dir=data_dir, out=tmp_path, num_validation=6)
    )
    assert row["num_steps"] == 4
    assert "test_loss" not in row
    assert np.isfinite(row["validation_loss"])
