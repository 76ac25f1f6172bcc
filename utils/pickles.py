"""Inspect a pickle without executing it: what it would import, and how much it would build.

torch's restricted unpickler runs no foreign code, but the instructions that it supports can take any amount of memory or time: a file of
1 kB can describe a tuple whose hash takes years. The scan adds up what the instructions would build, and torch reads only what stays small.
"""

import pickletools
from dataclasses import dataclass
from typing import IO, Any

from ..errors import UnsafeFileError, UnsupportedCheckpointError

MAX_BUILT = 64 << 20  # bytes; a full training state with 1 000 tensors builds 3 MB
OBJECT_BYTES = 64  # about the size of a small Python object

# Functions on torch's own allow-list that rebuild tensors other than dense ones
NOT_DENSE = {
    "torch._utils._rebuild_qtensor": "quantized tensors",
    "torch._utils._rebuild_sparse_tensor": "sparse tensors",
    "torch._utils._rebuild_nested_tensor": "nested tensors",
    "torch._utils._rebuild_meta_tensor_no_storage": "tensors without data (meta)",
    "torch._utils._rebuild_wrapper_subclass": "tensors of a subclass",
}
ENCODE = "_codecs.encode"  # protocol 2 writes bytes as text in Latin-1; other codecs can double their input, or take quadratic time
FILLS_MEMORY = "builtins.bytearray"  # bytearray(n) writes n bytes
IN_PLACE = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD")


@dataclass(slots=True, eq=False)
class _Built:
    """An object that a pickle would build: its size with its content, and its value if it is text, a global, or a tuple of these."""

    nbytes: int
    value: Any = None


_MARK = _Built(0)


def check_pickle(path: object, stream: IO[bytes]) -> None:
    """Raise a VitrailError unless a pickle builds plain data of bounded size; `path` names the file in messages.

    Every use of a shared object counts as a copy, because to hash it takes as long.

    Raises:
        UnsafeFileError: it builds too much, or calls a function with arguments that weights do not need.
        UnsupportedCheckpointError: it holds tensors that are not dense.
        ValueError, LookupError: it is damaged.
    """
    stack: list[_Built] = []
    memo: dict[Any, _Built] = {}
    total = 0
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name in ("PROTO", "STOP"):
            continue
        if opcode.name.endswith("PUT"):
            memo[argument] = stack[-1]
            continue
        if opcode.name.endswith("GET"):
            built = memo[argument]
            total += built.nbytes
        else:
            built = _build(path, opcode, argument, stack)
            total += built.nbytes if isinstance(argument, str | bytes) else OBJECT_BYTES
        stack.append(built)
        if total > MAX_BUILT:
            raise UnsafeFileError(
                f"{path} holds a pickle that would build more than {MAX_BUILT >> 20} MB of Python objects, which weights do not need; it "
                "was not read. Save the state dict alone."
            )


def _build(path: object, opcode: pickletools.OpcodeInfo, argument: Any, stack: list[_Built]) -> _Built:
    """Return what an instruction puts on the stack in place of what it takes."""
    if opcode.name == "MARK":
        return _MARK
    parts = _take(opcode, stack) if opcode.stack_before else []
    if opcode.name == "GLOBAL":
        return _Built(OBJECT_BYTES, _checked_global(path, argument))
    if any(part.value == ENCODE for part in parts):
        encoded_with = parts[1].value[1:] if opcode.name == "REDUCE" and isinstance(parts[1].value, list) else None
        if encoded_with != ["latin1"]:
            raise UnsafeFileError(
                f"{path} calls codecs.encode in a way that weights do not need; it was not read. Save the state dict alone."
            )
    content = sum(part.nbytes for part in parts)
    if opcode.name in IN_PLACE:
        parts[0].nbytes = content
        return parts[0]
    if opcode.name.startswith("TUPLE"):
        return _Built(OBJECT_BYTES + content, [part.value for part in parts])
    if isinstance(argument, str | bytes):
        return _Built(OBJECT_BYTES + len(argument), argument)
    return _Built(OBJECT_BYTES + content)


def _checked_global(path: object, argument: str) -> str:
    """Return the full name of a global that is not refused; torch's allow-list refuses the others."""
    name = argument.replace(" ", ".").replace("__builtin__.", "builtins.")
    if name in NOT_DENSE:
        raise UnsupportedCheckpointError(
            f"{path} holds {NOT_DENSE[name]}; expected dense floating point. Save the original weights, or call dequantize() or to_dense()."
        )
    if name == FILLS_MEMORY:
        raise UnsafeFileError(f"{path} imports bytearray, which weights do not need; it was not read. Save the state dict alone.")
    return name


def _take(opcode: pickletools.OpcodeInfo, stack: list[_Built]) -> list[_Built]:
    """Remove the operands of an instruction from the stack, and return them."""
    parts = []
    count = len(opcode.stack_before)
    if pickletools.markobject in opcode.stack_before:
        count -= 2  # the mark, and everything above it
        while (part := stack.pop()) is not _MARK:
            parts.append(part)
    parts += [stack.pop() for _ in range(count)]
    if _MARK in parts:
        raise ValueError("the pickle takes a mark for an object")
    return parts[::-1]


def imported_names(stream: IO[bytes]) -> list[str]:
    """Return the names that a pickle would import, in order."""
    names: dict[str, None] = {}
    strings, memo = [""], []
    argument: Any
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name == "GLOBAL":
            names[argument.replace(" ", ".")] = None
        elif opcode.name == "STACK_GLOBAL":  # protocol 4: module and name are the last two strings, possibly from the memo
            names[".".join(strings[-2:])] = None
        elif opcode.name == "MEMOIZE":
            memo.append(strings[-1])
        elif opcode.name in ("BINGET", "LONG_BINGET"):
            strings.extend(memo[argument : argument + 1])
        elif isinstance(argument, str):
            strings.append(argument)
    return list(names)
