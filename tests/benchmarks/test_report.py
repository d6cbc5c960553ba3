"""Tables and plots from rows alone."""

import json

import pytest
from matplotlib import pyplot

from benchmarks import report


@pytest.fixture
def rows(tmp_path):
    rows = []
    for optimizer, accuracy in (("nlcg", 0.9), ("sgd", 0.8)):
        for batch_size in (64, 256):
            for seed in (0, 1):
                curve = f"{optimizer}-{batch_size}-{seed}.jsonl"
                lines = [
                    {"step": k, "loss": 1 / (k + 1), "accuracy": 0.5} for k in range(9)
                ]
                (tmp_path / curve).write_text("\n".join(map(json.dumps, lines)))
                rows.append(
                    {
                        "status": "finished",
                        "test_accuracy": accuracy + 0.02 * seed,
                        "images_per_second": 1000.0,
                        "learning_rate": 0.1,
                        "num_steps": 9,
                        "device": "cpu",
                        "curve": curve,
                        "trials": {"learning_rate": [0.1, 0.3, 1.0]},
                        "config": {
                            "dataset": "digits",
                            "model": "mlp",
                            "optimizer": optimizer,
                            "batch_size": batch_size,
                            "learning_rate": None,
                            "schedule": "cosine",
                            "num_epochs": 1,
                            "num_validation": 0,
                            "eval_statistics": "recomputed",
                            "seed": seed,
                        },
                    }
                )
    path = tmp_path / "results.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return report.load(path)


def test_table_gathers_seeds(rows):
    lines = report.table(rows).splitlines()
    assert len(lines) == 2 + 4
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    expected = ["digits", "mlp", "64", "nlcg", "0.1", "cosine", "9", "2", "test"]
    assert cells == [*expected, "91.00 ± 1.41", "1000", "cpu"]


def test_runs_with_other_settings_have_lines_of_their_own(rows):
    one, other, *_ = rows
    for row, l2 in (one, 0.1), (other, 0.2):
        row["config"] |= {"l2": l2, "log_every": int(100 * l2)}
    cells = [line.split("|")[4].strip() for line in report.table(rows).splitlines()]
    assert cells[2:] == ["nlcg, l2 0.1", "nlcg, l2 0.2", "nlcg", "sgd", "sgd"]


def test_all_circumstances_are_told(rows):
    for row in rows:
        row |= {"platform": "cpu", "cpu_count": 2, "date": "2026-11-22T10"}
        row["versions"] = {"jax": "0.10.2", "optax": "0.2.8"}
    assert report.circumstances(rows) == (
        "2 CPU cores, jax 0.10.2, optax 0.2.8, seeds 0-1, 2026-11-22"
    )
    rows[0] |= {"platform": "gpu", "device": "H100", "date": "2026-11-24T10"}
    rows[1] |= {"date": "2026-11-23T10"}
    rows[1]["versions"] = {"jax": "0.11.0", "optax": "0.2.8"}
    assert report.circumstances(rows) == (
        "2 CPU cores and H100, jax 0.10.2 and 0.11.0, optax 0.2.8, seeds 0-1, "
        "2026-11-22 to 2026-11-24"
    )


def test_diverged_runs_count_as_wrong(rows):
    del rows[0]["test_accuracy"]
    rows[0]["status"] = "diverged"
    assert "46.00 ± 65.05 (1 diverged)" in report.table(rows)


def test_batch_size_table_marks_ends_of_the_grid(rows):
    lines = report.batch_size_table(rows).splitlines()
    assert lines[0].split("|")[2].strip() == "batch 64"
    assert lines[2].split("|")[2].strip() == "91.0 ± 1.4 @0.1*"


@pytest.mark.parametrize("plot", [report.plot_demo, report.plot_curves])
def test_plots_are_written(rows, tmp_path, plot):
    plot(rows, tmp_path, tmp_path / "plots" / "plot.png")
    assert (tmp_path / "plots" / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("panels", [1, 2, 3])
def test_legend_has_room(panels):
    figure, axes = report.new_figure(panels)
    for name in report.STYLES:
        axes[0].plot([0, 1], marker="o", linestyle="--", label=name)
    report.add_legend(figure, axes)
    figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    assert 0 <= legend.x0 < legend.x1 <= figure.bbox.width
    pyplot.close(figure)


def test_curves_of_different_settings_are_not_averaged(rows):
    assert list(report._group_by_label(rows)) == [
        "nlcg, batch_size 64",
        "nlcg, batch_size 256",
        "sgd, batch_size 64",
        "sgd, batch_size 256",
    ]
    assert list(report._group_by_label(rows[:2])) == ["nlcg"]
