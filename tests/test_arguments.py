"""Bad arguments: each names itself, what came and what is allowed."""

import jax.numpy as jnp
import optax
import pytest

import optax_nlcg

direction = optax_nlcg.scale_by_conjugate_direction
bfgs = optax_nlcg.scale_by_diagonal_bfgs
step = optax_nlcg.scale_by_step_line_search
online = optax_nlcg.scale_by_online_line_search
nlcg = optax_nlcg.nlcg
ml_ncg = optax_nlcg.reference.ml_ncg


@pytest.mark.parametrize(
    ("call", "error", "texts"),
    [
        (lambda: nlcg(-0.1), ValueError, ["learning_rate", "-0.1"]),
        (lambda: nlcg("fast"), TypeError, ["learning_rate", "'fast'"]),
        (lambda: nlcg(float("nan")), ValueError, ["learning_rate", "nan"]),
        (lambda: ml_ncg(-1.0), ValueError, ["learning_rate", "-1.0"]),
        (
            lambda: nlcg(0.1, beta_rule="flecher"),
            ValueError,
            ["beta_rule", "'flecher'", "fletcher_reeves", "hager_zhang"],
        ),
        (lambda: direction(beta_rule=None), TypeError, ["beta_rule", "None"]),
        (lambda: direction(beta_rule=True), TypeError, ["beta_rule", "True"]),
        (
            lambda: nlcg(0.1, beta_bounds=(1.0, 0.0)),
            ValueError,
            ["beta_bounds", "(1.0, 0.0)", "reversed"],
        ),
        (lambda: direction(beta_bounds=0.5), TypeError, ["beta_bounds", "0.5"]),
        (lambda: direction(beta_bounds=(0.0,)), TypeError, ["beta_bounds"]),
        (lambda: direction(restart_every=0), ValueError, ["restart_every", "0"]),
        (lambda: direction(restart_every=2.5), TypeError, ["restart_every", "2.5"]),
        (
            lambda: direction(restart_threshold=0.0),
            ValueError,
            ["restart_threshold", "0.0"],
        ),
        (
            lambda: direction(optax.identity),
            TypeError,
            ["preconditioner", "optax.identity()"],
        ),
        (
            lambda: nlcg(0.1, line_search="Step"),
            TypeError,
            ["line_search", "'Step'"],
        ),
        (lambda: bfgs(initial=0.0), ValueError, ["initial", "0.0"]),
        (lambda: bfgs(eps=-1e-8), ValueError, ["eps", "-1e-08"]),
        (lambda: bfgs(curvature_eps=-1.0), ValueError, ["curvature_eps", "-1.0"]),
        (lambda: step(period=0), ValueError, ["period", "0"]),
        (lambda: step(period=-5), ValueError, ["period", "-5"]),
        (lambda: step(period=1.5), TypeError, ["period", "1.5"]),
        (lambda: step(threshold=0.0), ValueError, ["threshold", "0.0"]),
        (lambda: step(loss_decay=1.0), ValueError, ["loss_decay", "1.0"]),
        (lambda: online(loss_decay=-0.1), ValueError, ["loss_decay", "-0.1"]),
        (lambda: online(rollback=1), TypeError, ["rollback", "1"]),
        (lambda: online(growth=0.9), ValueError, ["growth", "0.9"]),
        (lambda: online(min_scale=0.0), ValueError, ["min_scale", "0.0"]),
        (
            lambda: ml_ncg(0.1, update_rule="HS"),
            ValueError,
            ["update_rule", "'HS'", "'FR'", "'PR'"],
        ),
        (lambda: ml_ncg(0.1, precondition=None), ValueError, ["precondition", "None"]),
        (lambda: ml_ncg(0.1, line_search="No"), ValueError, ["line_search", "'No'"]),
        (lambda: ml_ncg(0.1, base_read="now"), ValueError, ["base_read", "'now'"]),
        (lambda: ml_ncg(0.1, period=0), ValueError, ["period", "0"]),
        (lambda: ml_ncg(0.1, lars_lr=0.0), ValueError, ["lars_lr", "0.0"]),
    ],
)
def test_at_construction(call, error, texts):
    with pytest.raises(error) as caught:
        call()
    for text in texts:
        assert text in str(caught.value)


@pytest.mark.parametrize(
    ("tx", "texts"),
    [
        (nlcg(0.1), ["scale_by_step_line_search", "`value`", "value=loss"]),
        (step(), ["scale_by_step_line_search", "`value`", "value=loss"]),
        (online(), ["scale_by_online_line_search", "`value`", "value=loss"]),
        (ml_ncg(0.1), ["ml_ncg", "`value`", "value=loss"]),
    ],
)
def test_missing_value(tx, texts):
    x = jnp.ones(2)
    with pytest.raises(ValueError, match="value") as caught:
        tx.update(x, tx.init(x), x)
    for text in texts:
        assert text in str(caught.value)


@pytest.mark.parametrize(
    ("tx", "stage"),
    [
        (nlcg(0.1), "scale_by_diagonal_bfgs"),
        (bfgs(), "scale_by_diagonal_bfgs"),
        (ml_ncg(0.1, lars_lr=0.1), "scale_by_lars"),
    ],
)
def test_missing_params(tx, stage):
    x = jnp.ones(2)
    with pytest.raises(ValueError, match=f"{stage} needs `params`"):
        tx.update(x, tx.init(x), value=1.0)


@pytest.mark.parametrize("tx", [nlcg(0.1), direction(), bfgs(), step(), ml_ncg(0.1)])
def test_gradient_that_does_not_match(tx):
    x = {"a": jnp.ones(2)}
    with pytest.raises(ValueError, match="tree structure"):
        tx.update({"b": jnp.ones(2)}, tx.init(x), x, value=1.0)
    with pytest.raises(ValueError, match=r"\['a'\].*\(3,\).*\(2,\)"):
        tx.update({"a": jnp.ones(3)}, tx.init(x), x, value=1.0)


def test_value_must_be_a_scalar():
    x = jnp.ones(2)
    with pytest.raises(ValueError, match=r"scalar; got shape \(2,\)"):
        step().update(x, step().init(x), value=x)
