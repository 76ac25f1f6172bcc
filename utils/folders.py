"""Write folders that are complete or absent: under a hidden name next to their place, then renamed.

A process that dies leaves hidden entries next to the output. The next process that writes there removes them, and restores the old folder
where the process died between the two renames of `move_into_place`. A lock protects the entries of a process that is running.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import VitrailError
from .atomic import is_temporary, synchronize
from .locks import acquire

NEW, OLD, LOCK = (f".vitrail-{kind}" for kind in ("new", "old", "lock"))


@contextmanager
def temporary_folder(output: Path) -> Iterator[Path]:
    """Yield a temporary folder next to `output` to write into and to rename from. What is left in it is removed.

    Other processes that write to the same output wait.
    """
    lock_file = _hidden(output, LOCK)
    lock = acquire(lock_file, wait=True, in_use=output)
    try:
        _mend(output)
        temporary = _hidden(output, NEW)
        temporary.mkdir()
        try:
            yield temporary
        finally:
            _mend(output)
    finally:
        lock_file.unlink(missing_ok=True)
        lock.release()


def move_into_place(temporary: Path, output: Path, *, keeps: Callable[[str], bool]) -> None:
    """Replace a folder by the one from `temporary_folder(output)`, with two renames.

    Args:
        keeps: whether an entry of the old folder, by its name, is kept. Entries of the new folder take precedence.
    """
    share(temporary)
    if output.exists():
        for entry in output.iterdir():
            if keeps(entry.name) and not is_temporary(entry.name) and not os.path.lexists(temporary / entry.name):
                _link(entry, temporary / entry.name)
        shutil.copymode(output, temporary)
    if output.exists():
        output.rename(_hidden(output, OLD))
    temporary.rename(output)


def share(folder: Path) -> None:
    """Flush the files of a folder to the disk, and give them the mode of new files: safetensors makes private ones."""
    mode = folder.stat().st_mode & 0o666  # of a new folder, whose mode is up to the process's umask, too
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(mode)
            synchronize(file)


def check_writable(output: Path) -> None:
    """Raise VitrailError, before any work, where a folder cannot be written or replaced. Nothing is created."""
    if output.exists() and not output.is_dir():
        raise VitrailError(f"{output} is a file; expected the name of a folder.")
    if output.is_mount():
        raise VitrailError(f"{output} is a mount point, which cannot be replaced as a whole: choose a folder inside it.")
    parent = next(folder for folder in output.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise VitrailError(
            f"{output} cannot be written, because {parent} is not a folder that you may write to: choose another place."
        )


def interrupted(output: str | os.PathLike[str]) -> Path | None:
    """Return where a process that died while it replaced a folder has left the old one; None where the folder is in its place."""
    parent, name = os.path.split(os.path.abspath(output))
    old = os.path.join(parent, f".{name}{OLD}")
    return Path(old) if os.path.isdir(old) and not os.path.exists(output) else None


def _hidden(output: Path, suffix: str) -> Path:
    return output.with_name(f".{output.name}{suffix}")


def _mend(output: Path) -> None:
    """Restore the old folder where a process died between the two renames, and remove the other entries of that process."""
    new, old = _hidden(output, NEW), _hidden(output, OLD)
    if old.exists() and not output.exists():
        old.rename(output)
    if old.exists() and new.exists():  # both renames had not been done, and yet there is a folder
        raise VitrailError(f"{old} is the earlier {output}, left by a run that was interrupted: move it elsewhere, or remove it.")
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(new, ignore_errors=True)


def _link(entry: Path, target: Path) -> None:
    """Give a file, or each file of a folder, a second name, without a copy where the file system has such links."""
    if entry.is_symlink() or not entry.is_dir():
        _link_file(os.fspath(entry), os.fspath(target))
    else:
        shutil.copytree(entry, target, symlinks=True, copy_function=_link_file)


def _link_file(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)
