"""Checks of arguments, with errors that say what came and what to do."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


def check_number(
    name: str,
    value: Any,
    *,
    low: float = -np.inf,
    high: float = np.inf,
    low_open: bool = False,
    high_open: bool = False,
    integer: bool = False,
) -> None:
    """Checks that an argument is a number in an interval.

    Arrays and tracers pass unchecked: under ``optax.inject_hyperparams`` every number
    is one, and its value is not known at construction.

    Args:
        name: the argument's name, for the message.
        value: what was given.
        low: least value allowed.
        high: greatest value allowed.
        low_open: whether ``low`` itself is excluded.
        high_open: whether ``high`` itself is excluded.
        integer: whether it must be a whole number.

    Raises:
        TypeError: if it is no number (or no integer where one is needed).
        ValueError: if it lies outside the interval, or is NaN.
    """
    if isinstance(value, jax.Array):
        return
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]  # of a state that was read from a file
    kinds = (int, np.integer) if integer else (int, float, np.integer, np.floating)
    kind = "an integer" if integer else "a number"
    if isinstance(value, bool) or not isinstance(value, kinds):
        how = ": put a schedule in by `optax.inject_hyperparams`" * callable(value)
        raise TypeError(f"`{name}` must be {kind}, got {value!r}{how}.")
    above = value > low if low_open else value >= low
    below = value < high if high_open else value <= high
    if not (above and below):
        interval = (
            f"{'(' if low_open else '['}{low:g}, {high:g}{')' if high_open else ']'}"
        )
        raise ValueError(f"`{name}` must be {kind} in {interval}, got {value!r}.")


def check_learning_rate(value: Any) -> None:
    """Checks a learning rate: a schedule, or a number that is not negative."""
    if callable(value):
        return
    if isinstance(value, str):
        raise TypeError(
            "`learning_rate` must be a number or a schedule such as "
            f"`optax.cosine_decay_schedule(0.1, 1000)`, got {value!r}."
        )
    check_number("learning_rate", value, low=0.0)


def check_choice(name: str, value: Any, allowed: Sequence[str]) -> None:
    """Checks that an argument is one of a few words.

    Raises:
        ValueError: if it is not.
    """
    if value not in allowed:
        words = ", ".join(repr(word) for word in allowed)
        raise ValueError(f"`{name}` must be one of {words}; got {value!r}.")


def check_flag(name: str, value: Any) -> None:
    """Checks that an argument is True or False.

    Raises:
        TypeError: if it is not.
    """
    if not isinstance(value, bool):
        raise TypeError(f"`{name}` must be True or False, got {value!r}.")


def check_transformation(name: str, value: Any) -> None:
    """Checks that an argument is an Optax transformation, and not a constructor of one.

    Raises:
        TypeError: if it is not.
    """
    if not isinstance(value, optax.GradientTransformation):
        raise TypeError(
            f"`{name}` must be an Optax transformation such as `optax.identity()`, got "
            f"{value!r}."
        )


def check_function(name: str, value: Any) -> None:
    """Checks that an argument can be called.

    Raises:
        TypeError: if it cannot.
    """
    if not callable(value):
        raise TypeError(f"`{name}` must be a function, got {value!r}.")


def as_arrays(name: str, values: Any) -> Any:
    """A tree of numbers and arrays as a tree of JAX's arrays.

    Raises:
        TypeError: if a leaf is neither.
    """

    def as_array(path: Any, leaf: Any) -> jax.Array:
        try:
            return jnp.asarray(leaf)
        except TypeError as error:
            raise TypeError(
                f"`{name}{jax.tree_util.keystr(path)}` must be an array or a number, "
                f"got {leaf!r}: close over what is neither, or part it from the arrays "
                "before, e.g. by Equinox's `partition`."
            ) from error

    return jax.tree_util.tree_map_with_path(as_array, values)


def check_floating(name: str, values: Any) -> None:
    """Checks that a tree has arrays that derivatives can be taken by.

    Raises:
        TypeError: if one is of integers or truth values.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(values):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise TypeError(
                f"`{name}{jax.tree_util.keystr(path)}` must be floating point, got "
                f"{leaf.dtype}: convert it, e.g. with `1.0 * x`, or close over it."
            )


def check_real_dtype(name: str, value: Any) -> None:
    """Checks that an argument names a floating-point dtype.

    Raises:
        TypeError: if it does not.
    """
    try:
        floating = jnp.issubdtype(jnp.dtype(value), jnp.floating)
    except TypeError:
        floating = False
    if not floating:
        raise TypeError(f"`{name}` must be a floating-point dtype, got {value!r}.")


_LOST = (
    " If that is what you do, something in between does not hand it on, as Flax's own "
    "`TrainState` and `optax.MultiSteps` in a chain: take `optax_nlcg.flax.TrainState` "
    "and `optax_nlcg.multi_steps`."
)


def check_state(stage: str, fits: bool, what: str) -> None:
    """Checks that a state was made by an optimizer with the same settings.

    Args:
        stage: the transformation that the state is given to.
        fits: whether it was.
        what: what it was made with, and what is wanted.

    Raises:
        ValueError: if it was not.
    """
    if not fits:
        raise ValueError(
            f"{stage}: the state was made with {what}. Build the optimizer with the "
            "settings that it had, or make a new state by `init`."
        )


def check_kind_of_state(stage: str, state: Any, kind: type) -> None:
    """Checks that a state is of the type that ``init`` returns.

    Args:
        stage: the transformation that the state is given to.
        state: what was given.
        kind: the type.

    Raises:
        ValueError: if it is not.
    """
    check_state(
        stage,
        isinstance(state, kind),
        "another transformation, or read from a file without one from `init` as its "
        f"template: its type is {type(state).__name__}, not {kind.__name__}",
    )


def require(
    stage: str, name: str, value: Any, *, what: str, how: str, hint: str = _LOST
) -> None:
    """Checks that an argument of ``update`` has been passed.

    Args:
        stage: the transformation that needs it.
        name: the argument's name.
        value: what was given; ``None`` is missing.
        what: what the argument is, in words.
        how: the call that passes it.
        hint: what to look at if that is done.

    Raises:
        ValueError: if it is missing.
    """
    if value is None:
        raise ValueError(f"{stage} needs `{name}`, {what}: call `{how}`.{hint}")


def require_params(stage: str, params: Any) -> None:
    """Checks that a stage that is given the gradient is given the parameters too.

    Raises:
        ValueError: if they are missing.
    """
    require(
        stage,
        "params",
        params,
        what="the parameters at which the gradient was taken",
        how="update(grads, state, params)",
        hint="",
    )


def loss_is_finite(extra_args: Mapping[str, Any]) -> bool | jax.Array:
    """Whether the loss of this step is finite, if ``update`` was given one.

    Raises:
        ValueError: if it is not one number.
    """
    value = extra_args.get("value")
    if value is None:
        return True
    check_loss("update", value)
    return jnp.isfinite(value)


def check_loss(stage: str, value: Any) -> None:
    """Checks that the loss of a step is one real number.

    Raises:
        ValueError: if it is not.
    """
    if isinstance(value, tuple | list | dict):  # of `has_aux`
        got = f"a {type(value).__name__}: pass the loss alone"
    elif shape := jnp.shape(value):
        got = f"shape {shape}"
    elif jnp.iscomplexobj(value):
        got = "a complex number"
    else:
        return
    raise ValueError(
        f"{stage} needs `value`, the loss of this step, as a real scalar; got {got}."
    )


def loss_alone(stage: str, value_fn: Callable[..., Any]) -> Callable[..., Any]:
    """The loss as a function of the parameters, checked where it is called.

    To look at what it returns by tracing it first would cost a trace of the model.

    Args:
        stage: the transformation that calls it.
        value_fn: the function that ``update`` was given.

    Returns:
        The same function; it raises a ``ValueError`` unless it returns one number.
    """

    def loss(*args: Any) -> Any:
        output = value_fn(*args)
        check_loss_function(stage, jax.eval_shape(lambda: output))
        return output

    return loss


def check_loss_function(stage: str, output: Any) -> None:
    """Checks that the loss as a function of the parameters returns one number.

    Args:
        stage: the transformation that calls it.
        output: what it returns, as ``jax.eval_shape`` has it.

    Raises:
        ValueError: if it does not.
    """
    if not isinstance(output, jax.ShapeDtypeStruct) or output.shape:
        raise ValueError(
            f"{stage} needs `value_fn` to return the loss alone, as a scalar; it "
            f"returns {output}."
        )


def check_whole(stage: str, params: Any) -> None:
    """Checks that none of the parameters that the loss is a function of is masked.

    Raises:
        ValueError: if one is.
    """

    def is_masked(x: Any) -> bool:
        return isinstance(x, optax.MaskedNode)

    if any(map(is_masked, jax.tree.leaves(params, is_leaf=is_masked))):
        raise ValueError(
            f"{stage} calls `value_fn` and needs all parameters, but some are masked: "
            "put it outside `optax.masked` or `optax.partition`, and freeze parameters "
            "by `optax.masked(optax.set_to_zero(), frozen)` before it."
        )
