"""The cost of an update, on the device that is there."""

import functools

import jax
import pytest

import optax_nlcg
from benchmarks import scaling_models, step_cost


@pytest.mark.parametrize(
    ("optimizer", "copies"), [("sgd", 0), ("momentum", 1), ("adamw", 2)]
)
def test_what_is_known_of_an_optimizer(optimizer, copies):
    row = step_cost.Update(optimizer, step_cost.matrices(10**6)).row
    one_pass = row["parameter_bytes"]
    assert one_pass == 4 * row["num_parameters"] == 4 * (1024**2 + 1024)
    assert row["state_bytes"] / one_pass == pytest.approx(copies, abs=1e-4)
    assert row["least_bytes"] / one_pass == pytest.approx(3 + 2 * copies, abs=1e-4)
    assert row["moved_bytes"] >= row["least_bytes"] - 64  # of scalars not used
    assert row["kernels"] >= row["num_arrays"] == 2


def test_nesterovs_step_costs_no_further_pass(monkeypatch):
    """As docs/algorithm.md says."""
    programs = {
        name: functools.partial(optax_nlcg.nlcg, 0.1, nesterov=name == "nesterov")
        for name in ("plain", "nesterov")
    }
    monkeypatch.setattr(step_cost, "OPTIMIZERS", programs)
    rows = [step_cost.Update(name, step_cost.matrices(10**6)).row for name in programs]
    for what in "moved_bytes", "temporary_bytes", "kernels", "state_bytes":
        assert rows[0][what] == rows[1][what] > 0


def test_timed_and_counted_rows_make_tables(monkeypatch):
    chosen = {name: step_cost.OPTIMIZERS[name] for name in ("adamw", "nlcg")}
    monkeypatch.setattr(step_cost, "OPTIMIZERS", chosen)
    rows = step_cost.measure(10**6, rounds=1, times=1)
    assert all(row["seconds"] > 0 and row["over_floor"] > 0 for row in rows)
    timed = step_cost.table(rows).splitlines()
    assert len(timed) == 2 + len(chosen)
    assert timed[0].split("|")[-2].strip() == "ms"
    rows = [step_cost.Update(name, step_cost.matrices(10**6)).row for name in chosen]
    counted = step_cost.table(rows).splitlines()
    assert counted[0].split("|")[-2].strip() == "on scalars"
    assert "1,049,600 in 2" in counted[2]


def test_resnet50_has_many_arrays():
    shapes = jax.tree.leaves(scaling_models.resnet50().params)
    assert len(shapes) == 161
    assert sum(shape.size for shape in shapes) == 25_557_032
