"""Compiles for devices that are not there.

    [device, *_] = topologies.devices("v5e:2x2")
    sharding = jax.sharding.SingleDeviceSharding(device)
    x = jax.ShapeDtypeStruct((1024,), jnp.float32, sharding=sharding)
    program = jax.jit(f).lower(x).compile()

The compilers are those used on such devices, but need none: libtpu for TPUs, XLA's
CUDA plugin for GPUs. Their programs can be read, not run, so that they say how often
memory is gone through and what is sent, and nothing about time.

Both compilers come with `pip install -e ".[bench,topologies]"`, best in an environment
of its own: where they are installed, JAX looks for their devices whenever it starts,
unless JAX_PLATFORMS=cpu.
"""

import importlib.metadata
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from benchmarks import metrics

Device = Any  # jax.Device, which type checkers take for a variable

_H100 = pathlib.Path(__file__).parent / "h100.txtpb"
_COMPILERS = {"tpu": "libtpu", "cuda": "jax-cuda12-plugin"}


def devices(target: str) -> Sequence[Device]:
    """Devices to compile for.

    JAX itself keeps to the CPU in a process that calls this before anything else of it;
    in others, set JAX_PLATFORMS=cpu.

    Args:
        target: `h100`, or a kind of TPU and how many along each axis: `v5e:4x4` is 16
            chips, `v5p:2x2x4` as many.

    Returns:
        The devices, to lay arguments out on.

    Raises:
        ImportError: if the compiler is not installed.
        RuntimeError: if JAX has started already, and has not taken the compiler.
        ValueError: if it does not know the target.
    """
    platform = _platform(target)
    jax.config.update("jax_platforms", "cpu")
    # Nothing is opened that two processes could not share.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    if _version(platform) is None:
        raise ImportError(
            f"compiling for {target} needs {_COMPILERS[platform]}: "
            'pip install -e ".[bench,topologies]".'
        )
    try:
        if platform == "tpu":
            found = topologies.get_topology_desc(target, "tpu")
        else:
            # One process, one host, one device.
            found = topologies.get_topology_desc(
                "", "cuda", target_config=_H100.read_text(), topology="1x1x1"
            )
    except NotImplementedError as error:
        # The CUDA plugin leaves at JAX's start where it is to use a GPU and has none.
        raise RuntimeError(
            f"JAX started without the compiler for {target}: set JAX_PLATFORMS=cpu."
        ) from error
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"{target!r} is no target: {error}") from error
    return found.devices


def environment(target: str) -> dict[str, Any]:
    """Where a result of such a program comes from: compilers, commit and date."""
    found = devices(target)
    here = metrics.environment(len(found))
    compiler = _COMPILERS[_platform(target)]
    return {
        **{name: here[name] for name in ("date", "git_commit", "num_devices")},
        "compiled_for": target,
        "platform": found[0].platform,
        "device": found[0].device_kind,
        "versions": here["versions"] | {compiler: _version(_platform(target))},
    }


def circumstances(target: str) -> str:
    """The same in a sentence."""
    made = environment(target)
    compiler = _COMPILERS[_platform(target)]
    return (
        f"Compiled for, not run on, {made['device']} (`{target}`; {compiler} "
        f"{made['versions'][compiler]}, jax {made['versions']['jax']}, "
        f"{made['date'][:10]})."
    )


def _platform(target: str) -> str:
    if target == "h100":
        return "cuda"
    if target.startswith("v") and ":" in target:
        return "tpu"
    raise ValueError(f"target must be h100 or like v5e:2x2, got {target!r}.")


def _version(platform: str) -> str | None:
    try:
        return importlib.metadata.version(_COMPILERS[platform])
    except importlib.metadata.PackageNotFoundError:
        return None
