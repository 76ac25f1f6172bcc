"""Safe reading of weight files: the format follows from the bytes, never from the name, and no code in a file is executed.

torch files, zipped or plain pickles, are read with the restricted unpickler of `torch.load(weights_only=True)`, and .npz files with
`allow_pickle=False`. Zipped torch files and safetensors stay memory-mapped. The arrays of an .npz are not aligned, so they are copied.
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

from ..errors import CorruptFileError, SourceNotFoundError, UnsafeFileError, UnsupportedCheckpointError, VitrailError

# Names of weights in a folder on the Hub, in order of preference
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

EXPECTED = "a torch file (.pth, .pt, .bin, .ckpt), a NumPy .npz, a .safetensors file, or the .index.json of a sharded one"

# DINO's training checkpoints hold `args: argparse.Namespace`, and learning rates and weight decays as numpy float64 scalars. numpy 2
# moved the function that rebuilds a scalar, so it has two names.
_numpy_scalar = np.float64(0).__reduce__()[0]
_ALLOWED_GLOBALS: list[Any] = [
    argparse.Namespace,
    (_numpy_scalar, "numpy.core.multiarray.scalar"),
    (_numpy_scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    type(np.dtype(np.float64)),
]

# Exceptions of the readers for damaged bytes, found by changing bytes of valid files at random: the restricted unpickler follows the
# bytes as far as it can, so it may raise nearly anything
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

# First bytes of files without weights (in lower case), what they are, and the remedy
_NOT_WEIGHTS = (
    (b"version https://git-lfs.github.com", "a git-lfs pointer, not the weights", "run `git lfs pull` in its repository"),
    (b"<!doctype html", "an HTML page, not weights", "the download was refused; open the page to see why, then download again"),
    (b"<html", "an HTML page, not weights", "the download was refused; open the page to see why, then download again"),
    (b"<?xml", "an XML page, not weights", "the download was refused; open the page to see why, then download again"),
)

_TRUSTED = (
    "If you trust its author, load it with torch.load(path, weights_only=False) where its classes are installed, save the state dict with "
    "torch.save(model.state_dict(), 'weights.pth'), and use that file."
)


@dataclass(frozen=True)
class CheckpointFile:
    """The content of a weight file.

    path: the file, or the index of a sharded one.
    container: `torch`, `npz` or `safetensors`.
    files: the files that hold the tensors, in order: the path itself, or the shards.
    content: a flat dict of CPU tensors by name; for `torch`, the saved object, usually nested dicts of tensors.
    """

    path: Path
    container: str
    content: Any
    files: tuple[Path, ...] = ()


def read_checkpoint(path: str | os.PathLike[str]) -> CheckpointFile:
    """Read a torch, .npz or safetensors file, or all shards of an index, onto the CPU.

    Raises:
        SourceNotFoundError: the file does not exist.
        CorruptFileError: the file is damaged or holds no weights.
        UnsafeFileError: reading the file would execute code.
        UnsupportedCheckpointError: the file has another format.
    """
    path = Path(path)
    container = _container(path)
    if container == "index":
        return _read_shards(path)
    return _read_single(path, container)


def find_weights(folder: str | os.PathLike[str]) -> Path:
    """Return the weight file, or the index of shards, in a folder in the Hub's layout, safetensors before pickles.

    Raises:
        SourceNotFoundError: the folder has none.
    """
    folder = Path(folder)
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    raise SourceNotFoundError(
        f"{folder} holds {_listing(folder)}; expected one of {', '.join(WEIGHT_FILES)}. Pass the path of the weight file."
    )


def _listing(folder: Path) -> str:
    return ", ".join(sorted(entry.name for entry in folder.iterdir())[:10]) or "nothing"


def _container(path: Path) -> str:
    """Return the format of a file from its first bytes: a key of `_READERS`, or `index`."""
    if path.is_dir():
        raise UnsupportedCheckpointError(f"{path} is a folder; expected a file. Pass one of the files in it ({_listing(path)}).")
    if not path.exists():
        raise SourceNotFoundError(f"There is no file {path}.")
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
            f"{path} is a tar archive. Unpack it and pass the file inside. A file of torch before 0.2 cannot be read safely: if you trust "
            "it, load it and save its state dict with torch.save."
        )
    raise UnsupportedCheckpointError(f"{path} begins with {head[:16]!r}, which is not a known format; expected {EXPECTED}.")


def _zip_container(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
    except _DAMAGE as error:
        raise CorruptFileError(
            f"{path} begins like a torch or .npz file, but is truncated or damaged: its {path.stat().st_size} bytes hold no zip "
            f"directory ({error}). Download it again."
        ) from error
    names = {member.rpartition("/")[2] for member in members}
    if "constants.pkl" in names:
        raise UnsupportedCheckpointError(
            f"{path} is a TorchScript program. If you trust it, load it with torch.jit.load and save its state_dict() with torch.save."
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
            f"{path} begins like a {container} file, but is truncated or damaged ({reason}). Download it again."
        ) from error
    return CheckpointFile(path=path, container=container.partition(" ")[0], content=content, files=(path,))


def _read_torch_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl")
        with archive.open(name) as stream:
            _check_protocol(path, stream)
        stored = all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())
    # Mapping a compressed member would read compressed bytes as numbers. torch.load takes a path with the suffix .safetensors for
    # safetensors, so such a torch file is passed open.
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
            raise CorruptFileError(f"{path} is truncated in the middle of a name. Download it again.") from error


def _check_protocol(path: Path, stream: IO[bytes]) -> None:
    """Raise UnsafeFileError for any pickle protocol but 2, which torch.save writes and its restricted reader supports."""
    if stream.read(2) == b"\x80\x02":
        return
    stream.seek(0)
    imported = _imports(stream)
    raise UnsafeFileError(
        f"{path} is a plain Python pickle, and reading it would execute code (it imports {', '.join(imported) or 'nothing'}); none of it "
        f"was executed. {_TRUSTED}"
    )


def _imports(stream: IO[bytes]) -> list[str]:
    """Return the names that a pickle would import, in order, without executing it."""
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


def _load_torch(path: Path, source: Path | IO[bytes], *, mmap: bool) -> Any:
    already_safe = torch.serialization.get_safe_globals()  # leaving `safe_globals` would remove these for the user
    try:
        with torch.serialization.safe_globals([entry for entry in _ALLOWED_GLOBALS if entry not in already_safe]):
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        if asked is None and "Unsupported operand" in str(error):
            raise  # not a pickle
        if asked is not None and asked[1].startswith("torch.distributed."):
            raise UnsupportedCheckpointError(
                f"{path} is one shard of a distributed run (FSDP): it imports {asked[1]}. Use the file with the full state dict; DINOv2 "
                "writes it as teacher_checkpoint.pth when it evaluates."
            ) from error
        raise UnsafeFileError(
            f"{path} imports {asked[1] if asked else 'a function that weights do not need'}, which is not on the allow-list; none of its "
            f"code was executed. {_TRUSTED}"
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
                    f"{path}: {name} is an array of Python objects, a pickle, which could execute code; it was not read. "
                    "Save only the arrays of numbers with np.savez."
                ) from error
            try:
                tensors[name] = _tensor(array)
            except (TypeError, ValueError) as error:
                raise UnsupportedCheckpointError(
                    f"{path}: {name} is not an array of a dtype that torch supports ({error}). Save the file without it."
                ) from error
    return tensors


def _tensor(array: np.ndarray) -> torch.Tensor:
    if array.dtype == np.dtype("V2"):  # JAX's bfloat16, for which numpy has no dtype
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(path, device="cpu")


def _read_shards(index_path: Path) -> CheckpointFile:
    """Return the tensors of all shards of an index as one flat dict."""
    try:
        index = json.loads(index_path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptFileError(f"{index_path} is not valid JSON ({error}). Download it again.") from error
    if not isinstance(index.get("weight_map"), dict):
        raise UnsupportedCheckpointError(
            f"{index_path} is a JSON file without a `weight_map`, so it is not an index of shards; expected {EXPECTED}."
        )
    tensors: dict[str, torch.Tensor] = {}
    files = []
    container = "safetensors"
    for name in sorted(set(index["weight_map"].values())):
        if Path(name).name != name:
            raise UnsafeFileError(f"{index_path} names the shard {name!r}, which is outside its folder; it was not read.")
        shard_path = index_path.with_name(name)
        if not shard_path.is_file():
            raise SourceNotFoundError(f"{index_path} names the shard {name}, which is missing from its folder; download it too.")
        shard_container = _container(shard_path)
        if shard_container == "index":
            raise CorruptFileError(f"{index_path} names {name} as a shard, which is an index itself. Download both again.")
        shard = _read_single(shard_path, shard_container)
        files.append(shard_path)
        tensors.update(shard.content)
        container = shard.container
    missing = sorted(index["weight_map"].keys() - tensors.keys())
    if missing:
        raise CorruptFileError(
            f"The shards of {index_path} lack {len(missing)} of its tensors ({', '.join(missing[:3])}). "
            "Download index and shards again, from one revision."
        )
    return CheckpointFile(path=index_path, container=container, content=tensors, files=tuple(files))


_READERS: dict[str, Callable[[Path], Any]] = {
    "torch zip": _read_torch_zip,
    "torch pickle": _read_torch_pickle,
    "npz": _read_npz,
    "safetensors": _read_safetensors,
}
