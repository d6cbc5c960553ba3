"""What a compiled program moves through its device's main memory, read off its HLO.

XLA's own `bytes accessed` does not say it: on TPUs it counts on-chip memory too, and
compiled for a GPU that is not there it is absent. Here an instruction reads its
operands and writes its results once, as far as they lie in main memory. A fusion reads
an operand once, or those slices of it that it takes; an update in place writes what it
updates; a transfer between main and on-chip memory is counted at its one end in main
memory. Caches are taken to hold nothing from one instruction to the next: right for
arrays that are larger than they are, too much for others.
"""

import dataclasses
import re

import jax

from benchmarks import hlo

# They name, group or wait for what is there, and move nothing.
_FREE = {
    "add-dependency",
    "after-all",
    "async-start",
    "bitcast",
    "call",
    "conditional",
    "constant",
    "domain",
    "get-tuple-element",
    "opt-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
    "while",
}
_FREE_CUSTOM_CALLS = {"AllocateBuffer", "ConcatBitcast"}
_COLLECTIVES = ("all-", "reduce-scatter", "collective-", "send", "recv")
# They read of their first operand as much as they give.
_SLICES = {"slice", "dynamic-slice", "gather"}
# Each element of their result needs that of each operand, and no other.
_ELEMENTWISE = {
    *("abs", "add", "and", "compare", "convert", "copy", "divide", "exponential"),
    *("is-finite", "maximum", "minimum", "multiply", "negate", "not", "or", "power"),
    *("rsqrt", "select", "sqrt", "subtract", "xor"),
}
# The same value under another name.
_VIEWS = {"bitcast", "get-tuple-element"}

_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Operation:
    """An instruction that does something.

    Attributes:
        name: of the instruction.
        opcode: what it is.
        source: the operation of JAX that it, or the largest part of it, came from.
        read: bytes that it reads from main memory, each time.
        written: bytes that it writes there, each time.
        times: how often it runs.
        is_transfer: whether it starts a transfer beside the computation.
        is_scalar: whether all that it takes and gives are single numbers.
    """

    name: str
    opcode: str
    source: str
    read: int
    written: int
    times: int
    is_transfer: bool
    is_scalar: bool

    @property
    def num_bytes(self) -> int:
        """Bytes read and written, in all its runs."""
        return self.times * (self.read + self.written)


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Sums over a program.

    Attributes:
        num_bytes: read from main memory and written to it.
        kernels: operations on arrays, without transfers beside the computation.
        scalar_operations: operations on single numbers alone. A GPU launches a kernel
            for each too; a TPU's scalar unit does them.
    """

    num_bytes: int
    kernels: int
    scalar_operations: int


def read(program: jax.stages.Compiled | str) -> list[Operation]:
    """Finds what a program for one device does, and what each operation moves.

    Args:
        program: the program, or its text.

    Returns:
        The operations, in the order of the text.

    Raises:
        ValueError: if a loop has no number of trips that can be read, or if devices
            communicate.
    """
    text = program if isinstance(program, str) else program.as_text() or ""
    parsed = hlo.Program(text)
    found = []
    for name, instruction in parsed.executed():
        if _is_free(instruction):
            continue
        if instruction.opcode.startswith(_COLLECTIVES):
            raise ValueError(
                f"{instruction.name} is between devices: compile for one device."
            )
        computation = parsed.computations[name]
        operands = [computation[operand] for operand in instruction.operands]
        is_transfer = instruction.opcode.endswith("-start")
        if is_transfer:
            size = sum(array.num_bytes for array in instruction.moved)
            given = instruction.moved
            read_bytes = size if _in_memory(operands[0].arrays) else 0
            written = size if _in_memory(given) else 0
        else:
            given = instruction.arrays
            read_bytes = _read(parsed, computation, instruction)
            written = _written(parsed, computation, instruction)
        taken = [array for operand in operands for array in operand.arrays]
        source = _OP_NAME.search(instruction.attributes)
        found.append(
            Operation(
                name=instruction.name,
                opcode=instruction.opcode,
                source=source[1] if source else "",
                read=read_bytes,
                written=written,
                times=parsed.times(name),
                is_transfer=is_transfer,
                is_scalar=all(array.size == 1 for array in [*taken, *given]),
            )
        )
    return found


def total(operations: list[Operation]) -> Traffic:
    """Sums operations up."""
    launched = [one for one in operations if not one.is_transfer]
    return Traffic(
        num_bytes=sum(one.num_bytes for one in operations),
        kernels=sum(one.times for one in launched if not one.is_scalar),
        scalar_operations=sum(one.times for one in launched if one.is_scalar),
    )


def _is_free(instruction: hlo.Instruction) -> bool:
    if instruction.opcode == "custom-call":
        target = _TARGET.search(instruction.attributes)
        return target is not None and target[1] in _FREE_CUSTOM_CALLS
    return instruction.opcode in _FREE or instruction.opcode.endswith(
        ("-done", "-update")
    )


def _in_memory(arrays: list[hlo.Array]) -> bool:
    return all(array.space == 0 for array in arrays)


def _size(instruction: hlo.Instruction) -> int:
    """Bytes of a result in main memory."""
    return sum(array.num_bytes for array in instruction.arrays if array.space == 0)


def _read(
    program: hlo.Program, computation: hlo.Computation, instruction: hlo.Instruction
) -> int:
    """Bytes of main memory that an instruction reads."""
    return sum(
        min(
            _size(computation[operand]),
            _taken(program, computation, instruction, operand),
        )
        for operand in set(instruction.operands)
    )


def _taken(
    program: hlo.Program,
    computation: hlo.Computation,
    instruction: hlo.Instruction,
    operand: str,
) -> int:
    """Bytes of an operand that an instruction takes, wherever they lie."""
    whole = sum(array.num_bytes for array in computation[operand].arrays)
    if instruction.opcode == "fusion":
        [called] = instruction.called("calls")
        parameters = {
            int(one.argument): one.name
            for one in program.computations[called].values()
            if one.opcode == "parameter"
        }
        places = [i for i, name in enumerate(instruction.operands) if name == operand]
        return sum(_used(program, called, parameters[place]) for place in places)
    if operand == instruction.operands[0]:
        if instruction.opcode in _SLICES:
            return sum(array.num_bytes for array in instruction.arrays)
        if instruction.opcode == "dynamic-update-slice":
            return 0
    return whole


def _used(program: hlo.Program, name: str, value: str) -> int:
    """Bytes that a fused computation uses of a value in it."""
    computation = program.computations[name]
    whole = sum(array.num_bytes for array in computation[value].arrays)
    if computation[value].is_root:
        return whole
    used = 0
    for user in computation.values():
        if value in user.operands:
            if user.opcode in _VIEWS:
                used += _used(program, name, user.name)
            elif user.opcode in _ELEMENTWISE:
                # What is not used of its result is not computed.
                result = sum(array.num_bytes for array in user.arrays)
                used += _used(program, name, user.name) * whole // max(1, result)
            else:
                used += _taken(program, computation, user, value)
    return min(whole, used)


def _written(
    program: hlo.Program, computation: hlo.Computation, instruction: hlo.Instruction
) -> int:
    """Bytes of main memory that an instruction writes."""
    if instruction.opcode == "dynamic-update-slice":
        return min(_size(instruction), _size(computation[instruction.operands[1]]))
    if instruction.opcode != "fusion":
        return _size(instruction)
    [called] = instruction.called("calls")
    root = program.root(called)
    results = root.operands if root.opcode == "tuple" else (root.name,)
    given = hlo.elements(instruction.result) if len(results) > 1 else [None]
    written = 0
    for result, kind in zip(results, given, strict=True):
        arrays = instruction.arrays if kind is None else hlo.arrays(kind)
        if _in_memory(arrays):
            size = sum(array.num_bytes for array in arrays)
            written += min(size, _updated(program, called, result))
    return written


def _updated(program: hlo.Program, name: str, result: str) -> int:
    """Bytes of a fusion's result that are not what was there before."""
    computation = program.computations[name]
    origin = computation[result]
    while origin.opcode == "bitcast":
        origin = computation[origin.operands[0]]
    if origin.opcode == "dynamic-update-slice":
        target = computation[origin.operands[0]]
        while target.opcode == "bitcast":
            target = computation[target.operands[0]]
        if target.opcode == "parameter":
            update = computation[origin.operands[1]]
            return sum(array.num_bytes for array in update.arrays)
    return sum(array.num_bytes for array in computation[result].arrays)
