"""Problems and loops that several test files share."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_nlcg


def spd_matrix(eigenvalues, seed=0):
    """A symmetric positive definite matrix with these eigenvalues, as float64."""
    n = len(eigenvalues)
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))
    return q * np.asarray(eigenvalues) @ q.T


def linear_cg(a, b, x, p, steps):
    """Preconditioned linear CG for a x = b: the textbook's loop, its iterates."""
    r = b - a @ x
    z = p @ r
    d, iterates = z, [x]
    for _ in range(steps):
        alpha = (r @ z) / (d @ a @ d)
        x = x + alpha * d
        r_new = r - alpha * a @ d
        z_new = p @ r_new
        d = z_new + (r_new @ z_new) / (r @ z) * d
        r, z = r_new, z_new
        iterates.append(x)
    return np.array(iterates)


def matrix_preconditioner(p):
    """Multiplication by a fixed matrix, as an Optax transformation."""
    return optax.stateless(lambda updates, params: p @ updates)


def exact_steps(tx, a, b, x, steps):
    """Iterates of a direction stage with exact steps on 0.5 x'Ax - b'x."""
    a, b, x = jnp.asarray(a), jnp.asarray(b), jnp.asarray(x)

    def body(carry, _):
        x, state = carry
        g = a @ x - b
        p, state = tx.update(g, state, x)
        curvature = p @ a @ p
        step = jnp.where(curvature > 0, (g @ p) / curvature, 0)
        x = x - step * p
        return (x, state), x

    (_, state), iterates = jax.lax.scan(body, (x, tx.init(x)), None, length=steps)
    return np.concatenate([np.asarray(x)[None], np.asarray(iterates)]), state


def descend(tx, fun, params, steps, **extra_args):
    """Runs an optimizer on a function; returns parameters, state and the losses."""

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(fun)(params)
        updates, state = tx.update(grads, state, params, value=value, **extra_args)
        return optax.apply_updates(params, updates), state, value

    state, losses = tx.init(params), []
    for _ in range(steps):
        params, state, value = step(params, state)
        losses.append(float(value))
    return params, state, np.array(losses)


def counted(fun, calls):
    """The function, appending to a list for each value and each gradient computed."""

    @jax.custom_vjp
    def watched(x):
        jax.debug.callback(lambda: calls.append("value"))
        return fun(x)

    def backward(x, cotangent):
        jax.debug.callback(lambda: calls.append("gradient"))
        gradient = jax.grad(fun)(x)
        return (jax.tree.map(lambda g: cotangent * g, gradient),)

    watched.defvjp(lambda x: (watched(x), x), backward)
    return watched


def draw(shape, seed=0, dtype=np.float32):
    """Normal random numbers."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def orthogonalize(gradient, *arguments):
    """The first update by `scale_by_orthogonalization` with these arguments."""
    tx = optax_nlcg.scale_by_orthogonalization(*arguments)
    return tx.update(gradient, tx.init(gradient))[0]
