"""The full-batch solvers that are compared, behind one interface.

Each runs a problem to a tolerance on the largest gradient entry. What it costs is
counted in the function itself: a value where the function is computed, a gradient where
its derivative is. jaxopt and pycgdescent (a wrapper of the C code CG_DESCENT 6.8) are
run where they are installed.
"""

import contextlib
import importlib
import importlib.util
import io
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize

import optax_nlcg
from benchmarks.problems import Problem


class Run(NamedTuple):
    """What a solver did.

    Attributes:
        evaluations: values plus gradients until the solver stopped; of optimistix,
            which does not stop by the gradient, until one within the tolerance was
            computed, None if there was none.
        reported: the solver's own count, or None.
        success: whether the solver reports success; None if it was stopped from
            outside.
        params: the point it returned.
    """

    evaluations: int | None
    reported: int | None
    success: bool | None
    params: np.ndarray


class Counter:
    """Counts evaluations, and notes when a gradient within the tolerance came up."""

    def __init__(self, tol: float):
        self.tol = tol
        self.total = 0
        self.at_tolerance: int | None = None

    def value(self, *_):
        self.total += 1

    def gradient(self, norm):
        self.total += 1
        if self.at_tolerance is None and norm <= self.tol:
            self.at_tolerance = self.total

    def watch(self, fun: Callable) -> Callable:
        """The function, telling this counter from inside compiled programs."""

        @jax.custom_vjp
        def watched(x):
            jax.debug.callback(self.value)
            return fun(x)

        def forward(x):
            return watched(x), x

        def backward(x, cotangent):
            gradient = jax.grad(fun)(x)
            jax.debug.callback(self.gradient, jnp.max(jnp.abs(gradient)))
            return (cotangent * gradient,)

        watched.defvjp(forward, backward)
        return watched

    def host(self, fun: Callable) -> tuple[Callable, Callable]:
        """The function and its gradient for a solver that runs on the host."""
        compiled, compiled_grad = jax.jit(fun), jax.jit(jax.grad(fun))

        def value(x):
            self.value()
            return float(compiled(x))

        def gradient(x):
            result = np.asarray(compiled_grad(x))
            self.gradient(np.max(np.abs(result)))
            return result

        return value, gradient


Solver = Callable[[Problem, Counter, int], tuple[Any, bool | None, int | None]]
"""Runs a problem with a counter and a cap; returns params, success, own count."""


def _ours(make_solver: Callable[[], optax.GradientTransformation]) -> Solver:
    def run(problem, counter, cap):
        fun = counter.watch(problem.fun)
        result = jax.jit(
            lambda x: optax_nlcg.minimize(
                fun, x, solver=make_solver(), tol=counter.tol, max_evaluations=cap
            )
        )(problem.start)
        return result.params, bool(result.converged), int(result.num_evaluations)

    return run


def _scipy(method: str) -> Solver:
    def run(problem, counter, cap):
        value, gradient = counter.host(problem.fun)
        options = {"gtol": counter.tol, "maxiter": cap}
        if method == "L-BFGS-B":
            options |= {"ftol": 0.0, "maxfun": cap // 2}
        with np.errstate(all="ignore"):
            result = scipy.optimize.minimize(
                value, problem.start, jac=gradient, method=method, options=options
            )
        return result.x, bool(result.success), int(result.nfev + result.njev)

    return run


def _cg_descent(memory: int) -> Solver:
    def run(problem, counter, cap):
        pycgdescent: Any = importlib.import_module("pycgdescent")

        value, gradient = counter.host(problem.fun)

        def gradient_into(g, x):
            g[...] = gradient(x)

        def both_into(g, x):
            g[...] = gradient(x)
            return value(x)

        options = pycgdescent.OptimizeOptions(memory=memory, maxit=cap)
        with contextlib.redirect_stdout(io.StringIO()):
            result = pycgdescent.minimize(
                value,
                problem.start.copy(),
                jac=gradient_into,
                funjac=both_into,
                tol=counter.tol,
                options=options,
            )
        return result.x, bool(result.success), int(result.nfev + result.njev)

    return run


def _optax_lbfgs(problem, counter, cap):
    """optax.lbfgs in the loop of its documentation, until the gradient is small."""
    fun = counter.watch(problem.fun)
    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(fun)

    def step(carry):
        params, state, count = carry
        value, grad = value_and_grad(params, state=state)
        updates, state = solver.update(
            grad, state, params, value=value, grad=grad, value_fn=fun
        )
        search = next(
            leaf
            for leaf in jax.tree.leaves(
                state, is_leaf=lambda x: isinstance(x, optax.ScaleByZoomLinesearchState)
            )
            if isinstance(leaf, optax.ScaleByZoomLinesearchState)
        )
        count += 2 * search.info.num_linesearch_steps
        return optax.apply_updates(params, updates), state, count

    def unfinished(carry):
        _, state, count = carry
        grad = optax.tree.get(state, "grad")
        return (count == 2) | ((count < cap) & (jnp.max(jnp.abs(grad)) > counter.tol))

    start = (jnp.asarray(problem.start), solver.init(problem.start), 2)
    params, _, count = jax.jit(
        lambda carry: jax.lax.while_loop(unfinished, step, carry)
    )(start)
    return params, None, int(count)


def _jaxopt(problem, counter, cap):
    jaxopt: Any = importlib.import_module("jaxopt")

    solver = jaxopt.NonlinearCG(counter.watch(problem.fun), maxiter=cap, tol=0.0)

    def unfinished(carry):
        _, state = carry
        count = state.num_fun_eval + state.num_grad_eval
        return (count < cap) & (jnp.max(jnp.abs(state.grad)) > counter.tol)

    def run(x):
        return jax.lax.while_loop(
            unfinished,
            lambda carry: tuple(solver.update(*carry)),
            (x, solver.init_state(x)),
        )

    params, state = jax.jit(run)(problem.start)
    return params, None, int(state.num_fun_eval + state.num_grad_eval)


def _optimistix(problem, counter, cap):
    """Stops by changes of its iterates; set so tight that it runs to the tolerance."""
    optimistix: Any = importlib.import_module("optimistix")

    fun = counter.watch(problem.fun)
    solver = optimistix.NonlinearCG(rtol=1e-12, atol=1e-12)
    run = jax.jit(
        lambda x: (
            optimistix.minimise(
                lambda y, _: fun(y), solver, x, max_steps=cap // 2, throw=False
            ).value
        )
    )
    return run(jnp.asarray(problem.start)), None, None


SOLVERS: dict[str, Solver] = {
    "limited_memory_cg": _ours(optax_nlcg.limited_memory_cg),
    "nonlinear_cg": _ours(optax_nlcg.nonlinear_cg),
    "scipy CG": _scipy("CG"),
    "scipy L-BFGS-B": _scipy("L-BFGS-B"),
    "CG_DESCENT": _cg_descent(memory=0),
    "CG_DESCENT memory": _cg_descent(memory=11),
    "optax.lbfgs": _optax_lbfgs,
    "jaxopt NonlinearCG": _jaxopt,
    "optimistix NonlinearCG": _optimistix,
}
"""Solvers by the name they have in tables."""

_NEEDS = {
    "CG_DESCENT": "pycgdescent",
    "CG_DESCENT memory": "pycgdescent",
    "jaxopt NonlinearCG": "jaxopt",
    "optimistix NonlinearCG": "optimistix",
}


def installed() -> list[str]:
    """The solvers that can be run here."""
    return [
        name
        for name in SOLVERS
        if name not in _NEEDS or importlib.util.find_spec(_NEEDS[name])
    ]


def run(name: str, problem: Problem, tol: float, cap: int) -> Run:
    """Runs a solver on a problem.

    Args:
        name: a name in :data:`SOLVERS`.
        problem: the problem; its start gives the dtype.
        tol: largest gradient entry to reach.
        cap: most evaluations that count.

    Returns:
        What it did.
    """
    counter = Counter(tol)
    params, success, reported = SOLVERS[name](problem, counter, cap)
    params = np.asarray(params)
    jax.effects_barrier()
    stops_by_gradient = name != "optimistix NonlinearCG"
    evaluations = counter.total if stops_by_gradient else counter.at_tolerance
    return Run(evaluations, reported, success, params)
