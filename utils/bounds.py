"""Bounds of the memory that reading a file may take beyond its size, whatever the file declares."""

from pathlib import Path

from ..errors import UnsupportedCheckpointError

MAX_EXPANSION = 10  # times the size of the file
ALLOWANCE = 64 << 20  # bytes, for small files
MAX_TENSORS = 100_000  # the largest published training state holds some 5 000


def check_expansion(path: Path, nbytes: int, tensors: int) -> None:
    """Raise UnsupportedCheckpointError if tensors of a file take far more memory than the file, or are too many."""
    size = path.stat().st_size
    if nbytes > MAX_EXPANSION * size + ALLOWANCE:
        raise UnsupportedCheckpointError(
            f"{path} has {size} bytes and unpacks to {nbytes}; expected at most {MAX_EXPANSION} times its size. It may be a "
            "decompression bomb: if you trust it, save its state dict as safetensors."
        )
    if tensors > MAX_TENSORS:
        raise UnsupportedCheckpointError(
            f"{path} holds {tensors} tensors; expected at most {MAX_TENSORS}. Save only the model's weights."
        )
