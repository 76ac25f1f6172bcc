"""Safe reading of weight files: what a file is follows from its bytes, never from its name, and no code in it ever runs.

torch files, zipped ones and the older plain pickles, are read with the restricted unpickler of `torch.load(weights_only=True)`;
.npz files with `allow_pickle=False`. Zipped torch files and safetensors stay memory-mapped: a tensor's bytes come from the disk
when they are used. The arrays of an .npz lie unaligned in it, so they are copied, once.
"""

import argparse
import json
import os
import pickle
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from ...errors import CorruptFileError, SourceNotFoundError, UnsafeFileError, UnsupportedCheckpointError, VitrailError

# How weights are called in a folder on the Hub, in order of preference.
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

EXPECTED = "a torch file (.pth, .pt, .bin, .ckpt), a NumPy .npz, a .safetensors file, or the .index.json of a sharded one"

# DINO's training checkpoints hold `args: argparse.Namespace`, and learning rates and weight decays that are numpy float64
# scalars. numpy 2 moved the function that rebuilds a scalar, so a file asks for it under one of two names.
_numpy_scalar = np.float64(0).__reduce__()[0]
_ALLOWED_GLOBALS: list[Any] = [
    argparse.Namespace,
    (_numpy_scalar, "numpy.core.multiarray.scalar"),
    (_numpy_scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    type(np.dtype(np.float64)),
]

# What the readers raise at damaged bytes: the restricted unpickler obeys them as far as they make sense, so it can be nearly
# anything. Found by changing bytes of sound files at random.
_DAMAGE = (
    AssertionError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    safetensors.SafetensorError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)

# How a file that holds no weights begins (in lower case), what it is, and what to do.
_NOT_WEIGHTS = (
    (b"version https://git-lfs.github.com", "a git-lfs pointer, not the weights", "run `git lfs pull` in its repository"),
    (b"<!doctype html", "an HTML page, not weights", "the download was refused; open the page to see why, then download again"),
    (b"<html", "an HTML page, not weights", "the download was refused; open the page to see why, then download again"),
    (b"<?xml", "an XML page, not weights", "the download was refused; open the page to see why, then download again"),
)

_TRUSTED = (
    "If you trust its author, load it once with torch.load(path, weights_only=False) where the classes it names are installed, "
    "save the state dict alone with torch.save(model.state_dict(), 'weights.pth'), and use that file."
)


@dataclass(frozen=True)
class CheckpointFile:
    """What a weight file holds.

    path: the file, or the index of a sharded one.
    container: `torch`, `npz` or `safetensors`.
    files: the files that hold the tensors, in order: the path itself, or the shards.
    content: a flat dict of CPU tensors by name; for `torch` the object that was saved, usually nested dicts of tensors.
    """

    path: Path
    container: str
    content: Any
    files: tuple[Path, ...] = ()


def read_checkpoint(path: str | os.PathLike[str]) -> CheckpointFile:
    """Reads a torch, .npz or safetensors file, or all shards that an index names, onto the CPU.

    Raises SourceNotFoundError where there is no file, CorruptFileError where it is damaged or holds no weights,
    UnsafeFileError where reading it would run code, UnsupportedCheckpointError where it is something else.
    """
    path = Path(path)
    container = _container(path)
    if container == "index":
        return _read_shards(path)
    return _read_single(path, container)


def find_weights(folder: str | os.PathLike[str]) -> Path:
    """The weight file, or the index of a sharded one, in a folder laid out as on the Hub; safetensors before pickles.

    Raises SourceNotFoundError where there is none.
    """
    folder = Path(folder)
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    raise SourceNotFoundError(
        f"{folder} holds none of {', '.join(WEIGHT_FILES)}; it holds {_listing(folder)}. Give the path of the file itself."
    )


def _listing(folder: Path) -> str:
    return ", ".join(sorted(entry.name for entry in folder.iterdir())[:10]) or "nothing"


def _container(path: Path) -> str:
    """What the file is, from its first bytes: a key of `_READERS`, or `index`."""
    if path.is_dir():
        raise UnsupportedCheckpointError(
            f"{path} is a folder where a file is expected; give one of the files in it ({_listing(path)})."
        )
    if not path.exists():
        raise SourceNotFoundError(f"there is no file {path}.")
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise CorruptFileError(f"{path} is empty; expected {EXPECTED}. Download it again.")
    for start, found, remedy in _NOT_WEIGHTS:
        if head.lstrip().lower().startswith(start):
            raise CorruptFileError(f"{path} is {found}: {remedy}.")
    if head.startswith(b"PK\x03\x04"):
        return _zip_container(path)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000:  # header length, at most 100 MB
        return "safetensors"
    if head.startswith(b"\x80"):
        return "torch pickle"
    if head.lstrip().startswith(b"{"):
        return "index"
    if head[257:262] == b"ustar":
        raise UnsupportedCheckpointError(
            f"{path} is a tar archive. If it is packed, unpack it and give the file inside; if torch before 0.2 wrote it, it "
            "cannot be read safely: load it where you trust it and save its state dict with torch.save."
        )
    raise UnsupportedCheckpointError(f"{path} begins with {head[:16]!r}, which no known format does; expected {EXPECTED}.")


def _zip_container(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
    except _DAMAGE as error:
        raise CorruptFileError(
            f"{path} begins as a torch or .npz file, but ends early or is damaged: its {path.stat().st_size} bytes hold no "
            f"directory ({error}). Download it again."
        ) from error
    names = {member.rpartition("/")[2] for member in members}
    if "constants.pkl" in names:
        raise UnsupportedCheckpointError(
            f"{path} is a TorchScript program. Load it where you trust it with torch.jit.load and save its state_dict() "
            "with torch.save."
        )
    if "data.pkl" in names:
        return "torch zip"
    if members and all(member.endswith(".npy") for member in members):
        return "npz"
    raise UnsupportedCheckpointError(f"{path} is a zip archive of {', '.join(members[:5])}; expected {EXPECTED}.")


def _read_single(path: Path, container: str) -> CheckpointFile:
    try:
        content = _READERS[container](path)
    except VitrailError:
        raise
    except _DAMAGE as error:
        reason = str(error) or type(error).__name__
        raise CorruptFileError(
            f"{path} begins as a {container} file, but ends early or is damaged ({reason}). Download it again."
        ) from error
    return CheckpointFile(path=path, container=container.partition(" ")[0], content=content, files=(path,))


def _read_torch_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl")
        with archive.open(name) as stream:
            _check_protocol(path, stream)
        stored = all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())
    # A compressed member, mapped, would be read as if it were the numbers. And torch.load goes by the suffix .safetensors of a
    # path, so a torch file that bears it has to be handed over open.
    if stored and path.suffix != ".safetensors":
        return _load_torch(path, path, mmap=True)
    with path.open("rb") as file:
        return _load_torch(path, file, mmap=False)


def _read_torch_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        _check_protocol(path, file)
        file.seek(0)
        try:
            return _load_torch(path, file, mmap=False)
        except UnsafeFileError as error:
            if file.read(1):
                raise
            raise CorruptFileError(f"{path} ends early, in the middle of a name. Download it again.") from error


def _check_protocol(path: Path, stream: IO[bytes]) -> None:
    """torch.save writes pickle protocol 2 and its restricted reader knows no other; any other pickle is not even tried."""
    if stream.read(2) == b"\x80\x02":
        return
    stream.seek(0)
    asked = _imports(stream)
    raise UnsafeFileError(
        f"{path} is a plain Python pickle, which cannot be read without running what it asks for "
        f"({', '.join(asked) or 'nothing'}); nothing of it was executed. {_TRUSTED}"
    )


def _imports(stream: IO[bytes]) -> list[str]:
    """The names that a pickle would import, in order, read off without running it."""
    names: dict[str, None] = {}
    strings, memo = [""], []
    argument: Any
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name == "GLOBAL":
            names[argument.replace(" ", ".")] = None
        elif opcode.name == "STACK_GLOBAL":  # protocol 4: module and name are the last two strings, maybe from the memo
            names[".".join(strings[-2:])] = None
        elif opcode.name == "MEMOIZE":
            memo.append(strings[-1])
        elif opcode.name in ("BINGET", "LONG_BINGET"):
            strings.extend(memo[argument : argument + 1])
        elif isinstance(argument, str):
            strings.append(argument)
    return list(names)


def _load_torch(path: Path, source: Path | IO[bytes], *, mmap: bool) -> Any:
    already_safe = torch.serialization.get_safe_globals()  # leaving `safe_globals` would take these from the user
    try:
        with torch.serialization.safe_globals([entry for entry in _ALLOWED_GLOBALS if entry not in already_safe]):
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        if asked is None and "Unsupported operand" in str(error):
            raise  # no pickle at all
        if asked is not None and asked[1].startswith("torch.distributed."):
            raise UnsupportedCheckpointError(
                f"{path} is one shard of a distributed run (FSDP): it asks for {asked[1]}. Use the file that holds the whole state dict; a "
                "run of DINOv2 writes it as teacher_checkpoint.pth when it evaluates."
            ) from error
        raise UnsafeFileError(
            f"{path} asks for {asked[1] if asked else 'a call that no weights need'}, which is not on the list of names that "
            f"weights need; nothing of it was executed. {_TRUSTED}"
        ) from error


def _read_npz(path: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    with np.load(path, allow_pickle=False) as archive:
        for name in archive.files:
            try:
                array = archive[name]
            except ValueError as error:
                if "allow_pickle" not in str(error):
                    raise
                raise UnsafeFileError(
                    f"{path}: {name} is an array of Python objects, a pickle, which could run code; it was not read. "
                    "Save the arrays of numbers alone with np.savez."
                ) from error
            try:
                tensors[name] = _tensor(array)
            except (TypeError, ValueError) as error:
                raise UnsupportedCheckpointError(
                    f"{path}: {name} is no array of numbers that torch knows ({error}). Save the file without it."
                ) from error
    return tensors


def _tensor(array: np.ndarray) -> torch.Tensor:
    if array.dtype == np.dtype("V2"):  # how numpy stores JAX's bfloat16, which it has no name for
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(path, device="cpu")


def _read_shards(index_path: Path) -> CheckpointFile:
    """All shards that an index names, as one flat dict."""
    try:
        index = json.loads(index_path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptFileError(f"{index_path} begins as JSON but is none ({error}). Download it again.") from error
    if not isinstance(index.get("weight_map"), dict):
        raise UnsupportedCheckpointError(
            f"{index_path} is a JSON file without a `weight_map`, so it is no index of shards; expected {EXPECTED}."
        )
    tensors: dict[str, torch.Tensor] = {}
    files = []
    container = "safetensors"
    for name in sorted(set(index["weight_map"].values())):
        if Path(name).name != name:
            raise UnsafeFileError(f"{index_path} names the shard {name!r}, which lies outside its folder; it was not read.")
        shard_path = index_path.with_name(name)
        if not shard_path.is_file():
            raise SourceNotFoundError(f"{index_path} names the shard {name}, which is not beside it; download it too.")
        kind = _container(shard_path)
        if kind == "index":
            raise CorruptFileError(f"{index_path} names {name} as a shard, which is an index itself.")
        shard = _read_single(shard_path, kind)
        files.append(shard_path)
        tensors.update(shard.content)
        container = shard.container
    missing = sorted(index["weight_map"].keys() - tensors.keys())
    if missing:
        raise CorruptFileError(
            f"the shards of {index_path} lack {len(missing)} of the tensors that it lists ({', '.join(missing[:3])}). "
            "Download index and shards again, from one revision."
        )
    return CheckpointFile(path=index_path, container=container, content=tensors, files=tuple(files))


_READERS: dict[str, Callable[[Path], Any]] = {
    "torch zip": _read_torch_zip,
    "torch pickle": _read_torch_pickle,
    "npz": _read_npz,
    "safetensors": _read_safetensors,
}
