"""Eight CPU devices for every test, so that parallel modes can be compared."""

import jax

jax.config.update("jax_num_cpu_devices", 8)
