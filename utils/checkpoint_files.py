"""The checkpoints of a Trainer: the last complete one, whether it is whole, and whether the disk was full for the next."""

import errno
import json
import re
import shutil
import zipfile
import zlib
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.utils import SAFE_WEIGHTS_NAME

from ..errors import CorruptFileError

# Without one of these, a Trainer goes on with a new one, and ends with other numbers. There is a state of the generators per process
NEEDED = (SAFE_WEIGHTS_NAME, OPTIMIZER_NAME, SCHEDULER_NAME, "rng_state*.pth")
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
FEW_BYTES = 2**20  # free on a disk that counts as full


def checkpoints(output_dir: Path) -> list[Path]:
    """Return the folders of checkpoints, complete or not, in the order of the run."""
    numbered = [path for path in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(numbered, key=checkpoint_update)


def checkpoint_update(checkpoint: Path) -> int:
    """Return the number of updates before a checkpoint."""
    return int(checkpoint.name.rpartition("-")[2])


def last_checkpoint(output_dir: Path) -> Path | None:
    """Return the last complete checkpoint of a Trainer, or None. The state of a checkpoint is written last."""
    return next((path for path in reversed(checkpoints(output_dir)) if _state(path) is not None), None)


def check_whole(checkpoint: Path) -> None:
    """Raise CorruptFileError if a file of a complete checkpoint has been removed or damaged since."""
    state = _state(checkpoint)
    if not isinstance(state, dict) or state.get("global_step") != checkpoint_update(checkpoint):
        raise _damaged(checkpoint / TRAINER_STATE_NAME, "belongs to another checkpoint")
    for pattern in NEEDED:
        files = sorted(checkpoint.glob(pattern))
        if not files:
            raise _damaged(checkpoint / pattern, "is missing")
        for file in files:
            if not _is_whole(file):
                raise _damaged(file, "is truncated or damaged")


def disk_is_full(error: Exception, folder: Path) -> bool:
    """Return True for an error of writing to a full disk. torch says only that it could not write."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in FULL_DISK
    if isinstance(error, SafetensorError):
        return any(f"(os error {number})" in str(error) for number in FULL_DISK)
    return shutil.disk_usage(folder).free < FEW_BYTES


def _state(checkpoint: Path) -> Any:
    try:
        return json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _is_whole(file: Path) -> bool:
    """Return False for weights that are shorter than their header says, and zip files with another checksum than they store."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt"):
                return True
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except (SafetensorError, OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError):
        return False


def _damaged(file: Path, reason: str) -> CorruptFileError:
    return CorruptFileError(
        f"{file} {reason}: remove the folder {file.parent}, and repeat the command. It resumes from the previous checkpoint, or starts "
        "over."
    )
