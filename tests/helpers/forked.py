"""Processes of tests, forked from a process that has imported the package, so that starting one does not repeat the imports.

A process calls a function of a test file. One that must start as a user's does, with other modules or settings, is no such process.
Strings have other hashes than in the process of the tests, so sets are in another order.
"""

import importlib.util
import multiprocessing
import multiprocessing.connection
import os
import socket
from pathlib import Path
from typing import Any
from unittest import mock

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["datasets", "vitrail.cli.app", "vitrail.evaluation.probing", "vitrail.pretraining.job"])


def start(file: str, function: str, *arguments: Any, **variables: str) -> multiprocessing.process.BaseProcess:
    """Call a function of a test file in another process, with environment variables. Return the running process."""
    process = CONTEXT.Process(target=_call, args=(file, function, arguments, variables))
    with mock.patch.dict(os.environ, PYTHONHASHSEED="7"):  # of the server, which the first process starts
        process.start()
    return process


def exit_code(file: str, function: str, *arguments: Any) -> int | None:
    """Call a function of a test file in another process. Return its exit code, which is negative for a signal."""
    process = start(file, function, *arguments)
    process.join()
    return process.exitcode


def run_two(file: str, function: str, *arguments: Any) -> None:
    """Call a function of a test file in two processes that torch.distributed joins, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    joined = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **threads}
    processes = [start(file, function, *arguments, **joined, RANK=rank, LOCAL_RANK=rank) for rank in "01"]
    running = {process.sentinel: process for process in processes}
    while running:
        for sentinel in multiprocessing.connection.wait(list(running)):
            if running.pop(sentinel).exitcode:
                for process in running.values():  # it would wait for the other one
                    process.kill()
    assert [process.exitcode for process in processes] == [0, 0]


def _call(file: str, function: str, arguments: tuple[Any, ...], variables: dict[str, str]) -> None:
    os.environ.update(variables)
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    getattr(module, function)(*arguments)
