"""Bad arguments: each names itself, what came and what is allowed."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import optax_nlcg
from tests import cases

direction = optax_nlcg.scale_by_conjugate_direction
bfgs = optax_nlcg.scale_by_diagonal_bfgs
step = optax_nlcg.scale_by_step_line_search
online = optax_nlcg.scale_by_online_line_search
nlcg = optax_nlcg.nlcg
ml_ncg = optax_nlcg.reference.ml_ncg
MESH = jax.make_mesh((1,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))


@pytest.mark.parametrize(
    ("call", "error", "texts"),
    [
        (lambda: nlcg(-0.1), ValueError, ["learning_rate", "-0.1"]),
        (lambda: nlcg("fast"), TypeError, ["learning_rate", "schedule", "'fast'"]),
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
        (lambda: nlcg(0.1, mask=True), ValueError, ["mask", "weight_decay", "None"]),
        (
            lambda: nlcg(0.1, weight_decay=optax.constant_schedule(0.1)),
            TypeError,
            ["weight_decay", "schedule", "inject_hyperparams"],
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
        (nlcg(0.1, weight_decay=0.1), "nlcg with `weight_decay`"),
        (bfgs(), "scale_by_diagonal_bfgs"),
        (ml_ncg(0.1, lars_lr=0.1), "scale_by_lars"),
        (optax_nlcg.limited_memory_cg(2), "limited_memory_cg"),
    ],
)
def test_missing_params(tx, stage):
    x = jnp.ones(2)
    with pytest.raises(ValueError, match=f"{stage} needs `params`"):
        tx.update(x, tx.init(x), value=1.0)


def test_parameters_that_do_not_match():
    tx, x = nlcg(0.1), {"a": jnp.ones(2)}
    with pytest.raises(ValueError, match="nlcg: `params` has the tree structure"):
        tx.update(x, tx.init(x), {"b": jnp.ones(2)}, value=1.0)


@pytest.mark.parametrize(
    "tx",
    [
        *(nlcg(0.1), direction(), bfgs(), step(), ml_ncg(0.1)),
        optax_nlcg.limited_memory_cg(2),
    ],
)
def test_gradient_that_does_not_match(tx):
    x = {"a": jnp.ones(2)}
    with pytest.raises(ValueError, match="tree structure"):
        tx.update({"b": jnp.ones(2)}, tx.init(x), x, value=1.0)
    with pytest.raises(ValueError, match=r"\['a'\].*\(3,\).*\(2,\)"):
        tx.update({"a": jnp.ones(3)}, tx.init(x), x, value=1.0)


@pytest.mark.parametrize("make", [step, lambda: ml_ncg(0.1), optax_nlcg.nonlinear_cg])
def test_value_must_be_a_scalar(make):
    tx, x = make(), jnp.ones(2)
    for value, got in (
        (x, r"shape \(2,\)"),
        ((x[0], {"accuracy": x[1]}), "a tuple: pass the loss alone"),
        (1j * x[0], "a complex number"),
    ):
        with pytest.raises(ValueError, match=f"`value`.* as a real scalar; got {got}"):
            tx.update(x, tx.init(x), x, value=value, grad=x, value_fn=jnp.sum)


@pytest.mark.parametrize(
    "stage",
    [
        optax_nlcg.scale_by_curvature_line_search(),
        optax_nlcg.scale_by_curvature_line_search(update_every=3),
        optax_nlcg.scale_by_hessian_diagonal(),
        optax_nlcg.scale_by_hessian_diagonal("exact"),
        optax_nlcg.scale_by_hager_zhang_line_search(),
    ],
)
def test_a_loss_function_returns_the_loss_alone(stage):
    x = jnp.ones(2)
    for value_fn in (lambda x: (jnp.sum(x), x), lambda x: x):
        with pytest.raises(ValueError, match="to return the loss alone, as a scalar"):
            stage.update(x, stage.init(x), x, value=1.0, grad=x, value_fn=value_fn)


def number(*outside, optional=False):
    """Bad values of a number, and the errors they give; ``outside`` its range."""
    wrong = ["many", True, [1.0], 1j, *([] if optional else [None])]
    return [(value, TypeError) for value in wrong] + [
        (value, ValueError) for value in (np.nan, *outside)
    ]


def integer(*outside, optional=False):
    wrong = ["many", True, [1], 1.5, *([] if optional else [None])]
    return [(value, TypeError) for value in wrong] + [
        (value, ValueError) for value in outside
    ]


def choice(optional=False):
    wrong = ["something else", 1, *([] if optional else [None])]
    return [(value, ValueError) for value in wrong]


FLAG = [(value, TypeError) for value in (1, None, "yes")]
TRANSFORMATION = [(value, TypeError) for value in (optax.sgd, "sgd", 0.1)]
RULE = [("steepest", ValueError), (None, TypeError), (True, TypeError)]
RULE += [(np.nan, ValueError), ([0.5], TypeError)]
RATE = [("fast", TypeError), (None, TypeError)]
RATE += [(-0.1, ValueError), (np.nan, ValueError)]
BOUNDS = [(0.5, TypeError), ((0.0,), TypeError), ((1.0, 0.0), ValueError)]
BOUNDS += [((0.0, "one"), TypeError), ((np.nan, 1.0), ValueError)]
DTYPE = [("float33", TypeError), (jnp.int32, TypeError), (0.5, TypeError)]
FUNCTION = [(value, TypeError) for value in (None, 1.0, "loss")]

LOSS_SEARCH = {
    "threshold": number(0.0, -1.0),
    "loss_decay": number(1.0, -0.1),
    "rollback": FLAG,
    "growth": number(0.9),
    "min_scale": number(0.0, 1.1),
}


def bowl(x):
    return jnp.sum(x**2)


# What must be given for the rest to be tried, and the bad values of each argument.
CONSTRUCTORS = {
    optax_nlcg.nlcg: (
        {"learning_rate": 0.1},
        {
            "learning_rate": RATE,
            "beta_rule": RULE,
            "beta_bounds": BOUNDS,
            "preconditioner": TRANSFORMATION,
            "line_search": TRANSFORMATION,
            "weight_decay": number(-0.1, optional=True),
            "mask": [("kernel", TypeError), ({"w": 1.0}, TypeError)],
            "nesterov": FLAG,
        },
    ),
    optax_nlcg.nonlinear_cg: (
        {},
        {
            "beta_rule": RULE,
            "preconditioner": TRANSFORMATION,
            "line_search": TRANSFORMATION,
        },
    ),
    optax_nlcg.limited_memory_cg: ({}, {"memory_size": integer(0, -1)}),
    optax_nlcg.scale_by_conjugate_direction: (
        {},
        {
            "preconditioner": TRANSFORMATION,
            "beta_rule": RULE,
            "beta_bounds": BOUNDS,
            "restart_every": integer(0, -1, optional=True),
            "restart_cycles": number(0.0, -1.0, optional=True),
            "restart_threshold": number(0.0, -1.0, optional=True),
            "accumulator_dtype": DTYPE,
            "nesterov": FLAG,
        },
    ),
    optax_nlcg.scale_by_diagonal_bfgs: (
        {},
        {
            "initial": number(0.0, -1.0),
            "eps": number(-1e-8),
            "curvature_eps": number(-1e-8),
        },
    ),
    optax_nlcg.scale_by_hessian_diagonal: (
        {},
        {
            "estimator": choice(optional=True),
            "decay": number(1.0, -0.1),
            "update_every": integer(0, -1),
            "num_probes": integer(0, -1),
            "floor": number(0.0, -1.0),
            "damping": number(-1.0),
            "power": number(-1.0),
            "normalize": FLAG,
            "averaging": choice(),
            "average_spatial": FLAG,
            "seed": integer(),
        },
    ),
    optax_nlcg.scale_by_orthogonalization: (
        {},
        {
            "matrices": [
                (1, TypeError),
                ("yes", TypeError),
                ([0.5], TypeError),
                ([(0, 1.0)], TypeError),
            ],
            "stack_sharding": [
                ("devices", TypeError),
                (MESH, TypeError),
                (PartitionSpec(), ValueError),
                (PartitionSpec(None, "devices"), ValueError),
                (PartitionSpec("devices", "model"), ValueError),
                (NamedSharding(MESH, PartitionSpec()), ValueError),
                (NamedSharding(MESH, PartitionSpec(None, "devices")), ValueError),
            ],
        },
    ),
    optax_nlcg.scale_by_step_line_search: (
        {},
        {"period": integer(0, -1), **LOSS_SEARCH},
    ),
    optax_nlcg.scale_by_online_line_search: ({}, LOSS_SEARCH),
    optax_nlcg.scale_by_curvature_line_search: (
        {},
        {
            "update_every": integer(0, -1),
            "decay": number(1.0, -0.1),
            "damping": number(-1.0),
            "max_step": number(0.0, -1.0),
        },
    ),
    optax_nlcg.scale_by_hager_zhang_line_search: (
        {},
        {
            "sufficient_decrease": number(0.0, 0.5),
            "curvature": number(0.05, 1.0),
            "value_error": number(-1e-6),
            "unit_step_tolerance": number(-0.1),
            "max_trials": integer(0, -1),
        },
    ),
    optax_nlcg.multi_steps: (
        {"optimizer": optax.sgd(0.1), "every_k": 2},
        {"optimizer": [*TRANSFORMATION, (None, TypeError)], "every_k": integer(0)},
    ),
    optax_nlcg.hessian_diagonal: (
        {"fun": bowl, "params": np.ones(2), "key": None, "method": "exact"},
        {"fun": FUNCTION, "method": choice(), "num_probes": integer(0)},
    ),
    optax_nlcg.value_grad_and_hessian_diagonal: (
        {"fun": bowl},
        {"fun": FUNCTION, "method": choice(), "num_probes": integer(0)},
    ),
    optax_nlcg.value_and_grad_from_state: (
        {"value_fn": bowl},
        {"value_fn": FUNCTION},
    ),
    optax_nlcg.minimize: (
        {"fun": bowl, "params": np.ones(2)},
        {
            "fun": FUNCTION,
            "params": [(np.arange(2), TypeError)],
            "args": [(3.0, TypeError)],
            "solver": TRANSFORMATION,
            "tol": number(-1.0),
            "max_steps": integer(-1, optional=True),
            "max_evaluations": integer(0),
            "callback": [("print", TypeError), (1.0, TypeError)],
        },
    ),
    optax_nlcg.parallel.synchronize: (
        {"value_fn": bowl, "axis_name": "data"},
        {"value_fn": FUNCTION},
    ),
    optax_nlcg.parallel.over_shards: (
        {"optimizer": optax.sgd(0.1), "specs": None},
        {"optimizer": [*TRANSFORMATION, (None, TypeError)]},
    ),
    optax_nlcg.reference.ml_ncg: (
        {"learning_rate": 0.1},
        {
            "learning_rate": RATE,
            "update_rule": choice(),
            "precondition": choice(),
            "line_search": choice(),
            "period": integer(0, -1),
            "threshold": number(0.0, -1.0),
            "base_read": choice(),
            "lars_lr": number(0.0, -1.0, optional=True),
        },
    ),
    optax_nlcg.reference.scale_by_lars: ({}, {"lars_lr": number(0.0, -1.0)}),
}

# Truth values as in `jax.value_and_grad`, and what JAX itself checks with the arrays.
UNCHECKED = {"has_aux", "record_history", "axis_name", "specs", "key"}
UNCHECKED_OF = {"hessian_diagonal": {"params"}}

BAD = [
    (function, given, argument, value, error)
    for function, (given, arguments) in CONSTRUCTORS.items()
    for argument, values in arguments.items()
    for value, error in values
]


@pytest.mark.parametrize(
    ("function", "given", "argument", "value", "error"),
    BAD,
    ids=[f"{bad[0].__name__}-{bad[2]}-{i}" for i, bad in enumerate(BAD)],
)
def test_every_argument(function, given, argument, value, error):
    with pytest.raises(error, match=rf"`{argument}\b") as caught:
        function(**given | {argument: value})
    assert "got" in str(caught.value) or repr(value) in str(caught.value)


WIDE = {
    "learning_rate": 0.1,
    "beta_rule": 0.5,
    "beta_bounds": (np.float64(0.0), np.float64(0.5)),
    "restart_threshold": 0.2,
    "restart_cycles": 6.0,
    "max_step": 3.0,
    "lars_lr": 0.1,
    "weight_decay": 0.1,
}


@pytest.mark.parametrize(
    ("function", "argument"),
    [
        (function, argument)
        for function, (given, _) in CONSTRUCTORS.items()
        for argument, parameter in inspect.signature(function).parameters.items()
        if function.__name__.startswith(("scale_by", "nlcg", "nonlinear_cg", "ml_ncg"))
        and (isinstance(parameter.default, float) or argument in WIDE)
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_wide_numbers_widen_no_state(x64, function, argument):
    """NumPy's scalars have a dtype of their own, which Python's have not."""
    given, _ = CONSTRUCTORS[function]
    parameter = inspect.signature(function).parameters[argument]
    value = WIDE.get(argument, parameter.default)
    if isinstance(value, float):
        value = np.float64(value)
    tx = optax.with_extra_args_support(function(**given | {argument: value}))
    params = cases.params_of()
    state = tx.init(params)
    step = cases.make_step("diagonal_estimated", tx)
    _, new_state, _, _ = jax.eval_shape(step, params, state)
    new, old = (jax.tree.map(lambda x: x.dtype, some) for some in (new_state, state))
    assert new == old


def test_numbers_of_a_state_that_was_read_from_a_file():
    """NumPy has them as arrays without axes; those are checked like others."""
    tx = optax.inject_hyperparams(optax_nlcg.scale_by_step_line_search)()
    x = jnp.ones(3)
    state = jax.tree.map(np.asarray, tx.init(x))
    updates, _ = tx.update(x, state, x, value=1.0)
    np.testing.assert_array_equal(updates, 1.0)
    optax_nlcg.nlcg(np.array(0.1))
    with pytest.raises(ValueError, match=r"`learning_rate` .* got"):
        optax_nlcg.nlcg(np.array(-0.1))
    with pytest.raises(TypeError, match="`period` must be an integer"):
        optax_nlcg.scale_by_step_line_search(np.array(5.0))

    optax_nlcg.nlcg(0.1, beta_rule=np.array(0.9))
    with pytest.raises(TypeError, match="`beta_rule` must be"):
        optax_nlcg.nlcg(0.1, beta_rule=np.array([0.9, 0.8]))


@pytest.mark.parametrize(
    ("before", "after", "texts"),
    [
        (
            nlcg(0.1),
            nlcg(0.1, beta_rule="polak_ribiere"),
            ["scale_by_conjugate_direction", "no previous gradient", "needs one"],
        ),
        (
            nlcg(0.1, beta_rule="polak_ribiere"),
            nlcg(0.1),
            ["scale_by_conjugate_direction", "a previous gradient", "needs none"],
        ),
        (
            nlcg(0.1, preconditioner=optax.identity()),
            nlcg(0.1),
            ["scale_by_diagonal_bfgs", "EmptyState, not DiagonalBfgsState"],
        ),
        (
            nlcg(0.1, line_search=step(rollback=False)),
            nlcg(0.1),
            ["scale_by_step_line_search", "rollback=False, here it is True"],
        ),
        (
            nlcg(0.1, preconditioner=optax.identity()),
            nlcg(
                0.1,
                preconditioner=optax.identity(),
                line_search=online(rollback=False),
            ),
            ["scale_by_online_line_search", "rollback=True, here it is False"],
        ),
        (
            optax_nlcg.limited_memory_cg(5),
            optax_nlcg.limited_memory_cg(3),
            ["limited_memory_cg", "memory_size=5, here it is 3"],
        ),
    ],
)
def test_a_state_of_other_settings(before, after, texts):
    """Of a run, say, that is resumed with something changed."""
    x = jnp.ones(3)
    state = before.init(x)
    with pytest.raises(ValueError, match="the state was made with") as caught:
        after.update(x, state, x, value=1.0, grad=x, value_fn=jnp.sum)
    for text in texts:
        assert text in str(caught.value)


def _without_types(state):
    """As Orbax reads a state that is given no template."""
    if not isinstance(state, tuple):
        return state
    parts = list(map(_without_types, state))
    fields = getattr(state, "_fields", None)
    return parts if fields is None else dict(zip(fields, parts, strict=True))


@pytest.mark.parametrize("name", cases.OPTIMIZERS)
def test_a_state_without_types(name):
    tx = cases.OPTIMIZERS[name]()
    x = jnp.ones(3)
    state = _without_types(tx.init(x))
    call = functools.partial(
        tx.update, x, state, x, **cases.extra_args(name, x, 1.0, x)
    )
    if name == "lars":
        call()  # it has no state
        return
    with pytest.raises(ValueError, match=r"type is (dict|list), not \w+State"):
        call()


@pytest.mark.parametrize("name", ["direction", "step", "nlcg", "ml_ncg"])
def test_a_state_of_another_optimizer(name):
    tx = cases.OPTIMIZERS[name]()
    x = jnp.ones(3)
    state = optax.adam(0.1).init(x)
    with pytest.raises(ValueError, match="another transformation") as caught:
        tx.update(x, state, x, **cases.extra_args(name, x, 1.0, x))
    assert "Build the optimizer" in str(caught.value)


def test_no_argument_is_forgotten():
    public = [
        getattr(module, name)
        for module in (optax_nlcg, optax_nlcg.parallel, optax_nlcg.reference)
        for name in dir(module)
        if not name.startswith("_")
    ]
    functions = {
        function
        for function in public
        if inspect.isfunction(function) and function.__module__.startswith("optax_nlcg")
    }
    assert functions == set(CONSTRUCTORS)
    for function, (given, arguments) in CONSTRUCTORS.items():
        names = set(inspect.signature(function).parameters) - UNCHECKED
        names -= UNCHECKED_OF.get(function.__name__, set())
        assert names == set(arguments), function.__name__
        functools.partial(function, **given)()  # and these are right
