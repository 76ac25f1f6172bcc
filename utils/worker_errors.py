"""Worker processes of a DataLoader that the system has killed."""

import contextlib
import re
from collections.abc import Iterator

from ..errors import VitrailError

DEAD_WORKER = re.compile(r"DataLoader worker.* (is killed|exited unexpectedly)")


@contextlib.contextmanager
def clear_worker_errors() -> Iterator[None]:
    """Raise a VitrailError when the system has killed a worker process of a DataLoader.

    torch raises its RuntimeError from the handler of a signal, so it strikes wherever the main thread is: also in a model or a file.
    """
    try:
        yield
    except (RuntimeError, ConnectionError) as error:
        if isinstance(error, RuntimeError) and not DEAD_WORKER.search(str(error)):
            raise
        raise VitrailError(
            f"a process that decodes images has died ({error}); if memory ran out, choose fewer workers with num_workers (--num-workers)"
        ) from error
