"""Learning-rate schedules, stated as fractions of the run's length.

Each is a function of the step alone; `peak` may be a traced array, so that one compiled
program serves a whole grid of learning rates.
"""

import jax
import optax

REFERENCE_DROPS = (102 / 200, 153 / 200)
# Warm-up as a fraction of the run.
WARMUP = {"reference": 25 / 200, "linear": 0.05, "cosine": 0.05, "constant": 0.0}
SCHEDULES = tuple(WARMUP)


def build(
    name: str,
    peak: float | jax.Array,
    num_steps: int,
    initial: float = 1 / 128,
    warmup: float | None = None,
) -> optax.Schedule:
    """Builds a schedule with maximum `peak` for a run of `num_steps` steps.

    With n = num_steps, W the steps of warm-up and k the step:

        reference   W = n / 8;  k < W: peak + (initial peak - peak) (1 - k/W)^.5,
                    then peak, x .1 from .51 n on, x .01 from .765 n on
        linear      W = .05 n;  peak (k+1)/(W+1) up to k = W, then linearly to 0 at n
        cosine      the same with peak (1 + cos(pi (k-W)/(n-W))) / 2
        constant    the same with peak; its own W is 0

    The reference's warm-up is TensorFlow's `polynomial_decay` of power .5 upwards, and
    its drops are epochs 102 and 153 of 200.

    Args:
      name: one of `SCHEDULES`.
      peak: the largest learning rate.
      num_steps: length of the run in steps.
      initial: where the reference's warm-up starts, as a fraction of `peak`; 1/128 is
        the reference's .1 at a maximum of 12.8.
      warmup: W as a fraction of n; None: the schedule's own (constant has none).
    """
    if name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}; known: {', '.join(SCHEDULES)}")
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    rising = round((WARMUP[name] if warmup is None else warmup) * num_steps)
    falling = num_steps - rising
    if not falling:
        raise ValueError(
            f"warmup must leave a step to fall in: {warmup:g} of {num_steps} steps are "
            "all of them"
        )
    if name == "reference":
        rise = optax.polynomial_schedule(initial * peak, peak, 0.5, max(rising, 1))
        drops = [round(fraction * num_steps) - rising for fraction in REFERENCE_DROPS]
        fall = optax.piecewise_constant_schedule(1.0, dict.fromkeys(drops, 0.1))
    else:
        rise = optax.linear_schedule(peak / (rising + 1), peak, max(rising, 1))
        fall = {
            "linear": lambda: optax.linear_schedule(1.0, 0.0, falling),
            "cosine": lambda: optax.cosine_decay_schedule(1.0, falling),
            "constant": lambda: optax.constant_schedule(1.0),
        }[name]()
    return optax.join_schedules([rise, lambda count: peak * fall(count)], [rising])
