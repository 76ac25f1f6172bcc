"""Safe reading of weight files: the format follows from the bytes, never from the name, and no code in a file is executed.

torch files, zipped or plain pickles, are read with the restricted unpickler of `torch.load(weights_only=True)`, and .npz files with
`allow_pickle=False`. Zipped torch files and safetensors stay memory-mapped. The arrays of an .npz are not aligned, so they are copied.
"""

import argparse
import io
import math
import os
import pickle
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
import safetensors
import safetensors.torch
import torch

from ..errors import CorruptFileError, SourceNotFoundError, UnsafeFileError, UnsupportedCheckpointError, VitrailError
from .atomic import read_json
from .bounds import check_expansion
from .file_kinds import special_kind
from .pickles import check_pickle, imported_names
from .zip_archives import check_checksums, check_directory

# Names of weights in a folder on the Hub, in order of preference
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

EXPECTED = "a torch file (.pth, .pt, .bin, .ckpt), a NumPy .npz, a .safetensors file, or the .index.json of a sharded one"

MAX_PICKLE_BYTES = 16 << 20  # of a pickle, without the numbers; that of a full training state of DINO's ViT-B has 0.4 MB
MAX_HEADER_BYTES = 16 << 20  # of a safetensors header


def _numpy_dtype(code: str, *flags: bool) -> np.dtype:
    """Rebuild the dtype of a numpy scalar."""
    if not re.fullmatch(r"[?biufc]\d{0,2}", code):
        raise ValueError(f"a numpy dtype {code[:16]!r}")
    return np.dtype(code, *flags)


def _numpy_scalar(dtype: np.dtype, data: bytes) -> np.generic:
    """Rebuild a numpy scalar from its bytes."""
    return np.frombuffer(data, dtype, count=1)[0]


# DINO's training checkpoints hold `args: argparse.Namespace`, and learning rates and weight decays as numpy float64 scalars; mmcv's hold
# scores and seeds as numpy scalars of other types. numpy 2 moved the function that rebuilds a scalar, so it has two names. numpy's own
# functions would reserve as much memory as a file declares.
_ALLOWED_GLOBALS: list[Any] = [
    argparse.Namespace,
    (_numpy_scalar, "numpy.core.multiarray.scalar"),
    (_numpy_scalar, "numpy._core.multiarray.scalar"),
    (_numpy_dtype, "numpy.dtype"),
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.float16, np.int64, np.int32, np.bool_)),
]

# Exceptions of the readers for damaged bytes, found by changing bytes of valid files at random: the restricted unpickler follows the
# bytes as far as it can, so it may raise nearly anything
_DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SystemError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    safetensors.SafetensorError,
    struct.error,
    tokenize.TokenError,
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
    if (folder / ".metadata").is_file():
        _refuse_distributed(folder)
    raise SourceNotFoundError(
        f"{folder} holds {_listing(folder)}; expected one of {', '.join(WEIGHT_FILES)}. Pass the path of the weight file."
    )


def _refuse_distributed(folder: Path) -> NoReturn:
    """Raise UnsupportedCheckpointError: the metadata of torch.distributed.checkpoint is a pickle that torch reads without bounds."""
    raise UnsupportedCheckpointError(
        f"{folder} holds a checkpoint of torch.distributed.checkpoint, which is not read. If you trust it, write it to one file with "
        f"torch.distributed.checkpoint.format_utils.dcp_to_torch_save({str(folder)!r}, 'weights.pth'), and pass that file."
    )


def _listing(folder: Path) -> str:
    return ", ".join(sorted(entry.name for entry in folder.iterdir())[:10]) or "nothing"


def _container(path: Path) -> str:
    """Return the format of a file from its first bytes: a key of `_READERS`, or `index`."""
    if path.suffix == ".distcp":
        _refuse_distributed(path.parent)
    head = _first_bytes(path)
    if not head:
        raise CorruptFileError(f"{path} is empty; expected {EXPECTED}. Download it again.")
    for start, found, remedy in _NOT_WEIGHTS:
        if head.lstrip().lower().startswith(start):
            raise CorruptFileError(f"{path} is {found}: {remedy}.")
    if head.startswith(b"PK\x03\x04"):
        return _zip_container(path)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000:  # header length; the library's own limit
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


def _first_bytes(path: Path) -> bytes:
    """Return the first bytes of a regular file; raise a VitrailError for anything else, which is not opened."""
    try:
        if path.is_dir():
            raise UnsupportedCheckpointError(
                f"{path} is a folder; expected a file. Pass one of the files in it ({_listing(path)})."
            )
        if kind := special_kind(path):
            raise UnsupportedCheckpointError(f"{path} is {kind}; expected a file. Write its content to a file and pass that.")
        with path.open("rb") as file:
            return file.read(512)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SourceNotFoundError(f"There is no file {path}.") from error
    except OSError as error:
        raise SourceNotFoundError(f"{path} cannot be read ({error.strerror}). Check its name and its permissions.") from error


def _zip_container(path: Path) -> str:
    try:
        members = check_directory(path)
    except VitrailError:
        raise
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
        _check_content(path, content)
    except VitrailError:
        raise
    except MemoryError as error:
        raise VitrailError(
            f"There is not enough memory to read {path} ({path.stat().st_size} bytes). Free memory and repeat."
        ) from error
    except _DAMAGE as error:
        reason = str(error) or type(error).__name__
        raise CorruptFileError(
            f"{path} begins like a {container} file, but is truncated or damaged ({reason}). Download it again."
        ) from error
    return CheckpointFile(path=path, container=container.partition(" ")[0], content=content, files=(path,))


def _check_content(path: Path, content: Any) -> None:
    """Raise a VitrailError unless the tensors in a file are dense, have printable names, and are not much larger than the file."""
    nbytes = count = 0
    for name, tensor in _named_tensors(content):
        if not name.isprintable():
            raise CorruptFileError(
                f"{path} holds a tensor with the name {name!r}, in which a character is not printable. Rename it."
            )
        if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized or tensor.device.type != "cpu":
            raise UnsupportedCheckpointError(
                f"{path}: {name} is not a dense tensor of numbers ({tensor.layout}, {tensor.dtype}, on {tensor.device}). Save the "
                "original weights, or call dequantize() or to_dense()."
            )
        nbytes += tensor.nbytes
        count += 1
    check_expansion(path, nbytes, count)


def _named_tensors(content: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor in nested dictionaries, lists and tuples, with its key; each container counts once."""
    containers, seen = [content], {id(content)}
    while containers:
        container = containers.pop()
        items = (
            container.items()
            if isinstance(container, dict)
            else enumerate(container)
            if isinstance(container, list | tuple)
            else ()
        )
        for key, value in items:
            if isinstance(value, torch.Tensor):
                yield str(key), value
            elif id(value) not in seen:
                seen.add(id(value))
                containers.append(value)


def _read_torch_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        for member in members:
            if member.filename.rpartition("/")[2] == "data.pkl":
                with archive.open(member) as stream:
                    _check_pickles(path, stream, count=1)
    check_checksums(path)  # torch checks none in a memory map
    # Mapping a compressed member would read compressed bytes as numbers. torch.load takes a path with the suffix .safetensors for
    # safetensors, and cannot open a name that is not valid UTF-8, so such a torch file is passed open.
    stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
    if stored and path.suffix != ".safetensors" and not re.search(r"[\udc80-\udcff]", str(path)):
        return _load_torch(path, path, mmap=True)
    with path.open("rb") as file:
        return _load_torch(path, file, mmap=False)


def _read_torch_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        _check_pickles(path, file, count=5)  # magic number, version, system, the object, keys of its storages
        file.seek(0)
        return _load_torch(path, file, mmap=False)


def _check_pickles(path: Path, stream: IO[bytes], *, count: int) -> None:
    """Check that consecutive pickles have protocol 2, which torch.save writes and its restricted reader supports, and a bounded size."""
    start = io.BytesIO(stream.read(MAX_PICKLE_BYTES))
    size = len(start.getbuffer())
    if start.read(2) != b"\x80\x02":
        start.seek(0)
        imported = ", ".join(imported_names(start)) or "nothing"
        raise UnsafeFileError(
            f"{path} is a plain Python pickle, and reading it would execute code (it imports {imported}); none of it was executed. "
            f"{_TRUSTED}"
        )
    start.seek(0)
    for _ in range(count):
        if start.tell() == size < MAX_PICKLE_BYTES:
            break  # no more pickles, and torch will raise
        check_pickle(path, start)


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
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            array = _read_array(path, archive, member)
            try:
                tensors[name] = _tensor(array)
            except (TypeError, ValueError) as error:
                raise UnsupportedCheckpointError(
                    f"{path}: {name} is not an array of a dtype that torch supports ({error}). Save the file without it."
                ) from error
    return tensors


def _read_array(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """Return an array of numbers, whose header must declare the same size as the archive."""
    name = member.filename.removesuffix(".npy")
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(stream)
        if dtype.hasobject:
            raise UnsafeFileError(
                f"{path}: {name} is an array of Python objects, a pickle, which could execute code; it was not read. "
                "Save only the arrays of numbers with np.savez."
            )
        if stream.tell() + math.prod(shape) * dtype.itemsize != member.file_size:
            raise ValueError(f"the header of {name} declares another size than its {member.file_size} bytes")
    with archive.open(member) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def _tensor(array: np.ndarray) -> torch.Tensor:
    if array.dtype == np.dtype("V2"):  # JAX's bfloat16, for which numpy has no dtype
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if header > MAX_HEADER_BYTES:
        raise UnsupportedCheckpointError(
            f"{path} has a header of {header} bytes; expected at most {MAX_HEADER_BYTES}. Save only the model's weights, without metadata."
        )
    with safetensors.safe_open(path, framework="pt") as tensors:
        check_expansion(path, 0, len(tensors.keys()))
    return safetensors.torch.load_file(path, device="cpu")


def _read_shards(index_path: Path) -> CheckpointFile:
    """Return the tensors of all shards of an index as one flat dict."""
    index = read_json(index_path)
    if not isinstance(index.get("weight_map"), dict):
        raise UnsupportedCheckpointError(
            f"{index_path} is a JSON file without a `weight_map`, so it is not an index of shards; expected {EXPECTED}."
        )
    tensors: dict[str, torch.Tensor] = {}
    files = []
    container = "safetensors"
    for name in sorted(set(map(str, index["weight_map"].values()))):
        if Path(name).name != name or not name:
            raise UnsafeFileError(f"{index_path} names the shard {name!r}, which is outside its folder; it was not read.")
        shard_path = index_path.with_name(name)
        if not os.path.exists(shard_path):  # unlike Path.exists, false for a name that is too long
            raise SourceNotFoundError(f"{index_path} names the shard {name}, which is missing from its folder; download it too.")
        shard_container = _container(shard_path)
        if shard_container == "index":
            raise CorruptFileError(f"{index_path} names {name} as a shard, which is an index itself. Download both again.")
        shard = _read_single(shard_path, shard_container)
        if not isinstance(shard.content, dict):
            raise UnsupportedCheckpointError(
                f"{shard_path} holds a {type(shard.content).__name__}; expected a dictionary of tensors, as in every shard."
            )
        files.append(shard_path)
        tensors |= {key: value for key, value in shard.content.items() if index["weight_map"].get(key, name) == name}
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
