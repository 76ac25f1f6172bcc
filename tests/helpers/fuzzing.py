"""Fuzzing: many damaged inputs for one function, each of which follows from its number, and a judgement of what becomes of each.

An input is refused by a VitrailError with a message of one line, or read as if it were whole ("equal"), or read as other numbers
("changed"), which a test must allow. Any other exception is a fault, and so is an input that takes too much time or memory. VITRAIL_FUZZ
multiplies the number of inputs; VITRAIL_FUZZ_CASE runs one of them, and shows the traceback of its exception.
"""

import contextlib
import os
import random
import resource
import signal
import traceback
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vitrail.errors import VitrailError

SECONDS = 20  # of one input, which usually takes a hundredth of a second
MEMORY = 512 << 20  # bytes by which one input may raise the peak of the process
ADDRESS_SPACE = 6 << 30  # bytes beyond those in use: an input that asks for more does not get them
FACTOR = float(os.environ.get("VITRAIL_FUZZ", "1"))
CASE = os.environ.get("VITRAIL_FUZZ_CASE")
CONTROLS = ("Cc", "Cs", "Zl", "Zp")  # categories of Unicode: control characters, surrogates, separators of lines
DIRECTIONS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
ANYTHING = object()  # for `expected`: an input may be accepted as anything


class Fault(AssertionError):  # noqa: N818 - of an input
    """An input that is neither refused nor accepted as it should be."""


class TooSlow(BaseException):
    """An input that ran out of time; no handler of errors in the package catches it."""


class Fuzzer:
    """Runs the cases of one test.

    test: the id of the test, from which all its inputs follow.
    """

    def __init__(self, test: str) -> None:
        self.test = test

    def __call__(
        self, attempt: Callable[[random.Random], Any], number: int, *, expected: Any = ANYTHING, may_change: bool = False
    ) -> None:
        """Judge `attempt`, which draws an input and returns what the package makes of it, for `number` cases, or FACTOR times as many.

        expected: the result for the undamaged input; may_change: allow other results.

        Raises Fault with all cases that failed.
        """
        outcomes: Counter[str] = Counter()
        faults: dict[str, list[int]] = {}
        for case in range(round(number * FACTOR)) if CASE is None else [int(CASE)]:
            try:
                outcomes[judge(lambda: attempt(self.random(case)), expected, may_change=may_change)] += 1  # noqa: B023 - runs now
            except Fault as fault:
                if CASE is not None:
                    raise
                faults.setdefault(str(fault), []).append(case)
        print(f"{sum(outcomes.values())} inputs:", ", ".join(f"{number} {name}" for name, number in sorted(outcomes.items())))
        if faults:
            found = "\n".join(f"{len(cases)} x {fault} (VITRAIL_FUZZ_CASE={cases[0]})" for fault, cases in faults.items())
            raise Fault(f"of {round(number * FACTOR)} inputs\n{found}\nRepeat one: VITRAIL_FUZZ_CASE=… pytest '{self.test}'")

    def random(self, case: int) -> random.Random:
        """Return the generator of a case."""
        return random.Random(f"{self.test} {case}")


def judge(attempt: Callable[[], Any], expected: Any = ANYTHING, *, may_change: bool = False) -> str:
    """Return what becomes of an input: "refused", "accepted" (as anything), "equal" or "changed". Raise Fault for anything else."""
    before = peak()
    try:
        with limits():
            result = attempt()
        outcome = "accepted" if expected is ANYTHING else "equal" if result == expected else "changed"
    except VitrailError as error:
        check_message(error)
        outcome = "refused"
    except Fault:
        raise
    except (Exception, TooSlow) as error:
        raise Fault(describe(error)) from error
    if (grown := peak() - before) > MEMORY:
        raise Fault(f"{outcome}, but took {grown >> 20} MiB")
    if outcome == "changed" and not may_change:
        raise Fault(f"accepted with {differences(result, expected)}")
    return outcome


def differences(result: Any, expected: Any) -> str:
    """Return what differs between two results, by name if they are dicts."""
    if isinstance(result, dict) and isinstance(expected, dict):
        return f"another {', '.join(sorted(name for name in result.keys() | expected if result.get(name) != expected.get(name)))}"
    return "another result"


def check_message(error: BaseException) -> None:
    """Raise Fault unless the message is one line of printable text, and memory was not what stopped the input."""
    text = str(error)
    if not text or any(unicodedata.category(one) in CONTROLS or unicodedata.bidirectional(one) in DIRECTIONS for one in text):
        raise Fault(f"{describe(error)[:300]!r}, which is not one line of text") from error
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or "allocate memory" in str(cause):
            raise Fault(f"asks for too much memory: {describe(cause)[:300]}") from error
        cause = cause.__cause__ or cause.__context__


def describe(error: BaseException) -> str:
    """Return the type of an exception, where it was raised, and the last line of the package on the way there."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [frames[-1], *[frame for frame in frames if "/vitrail/" in frame.filename][-1:]]
    where = " < ".join(f"{'/'.join(Path(place.filename).parts[-2:])}:{place.lineno}" for place in places)
    return f"{type(error).__name__} at {where}"


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Bound time and address space, and ignore warnings."""

    def stop(*_: object) -> None:
        raise TooSlow

    address_space = resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    handler = signal.signal(signal.SIGALRM, stop)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            resource.setrlimit(resource.RLIMIT_AS, (in_use + ADDRESS_SPACE, address_space[1]))
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, address_space)


def peak() -> int:
    """Return the most memory that the process has ever held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
