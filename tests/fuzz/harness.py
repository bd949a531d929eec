"""Runs a reader on damaged inputs in a separate process, with limits of time and memory.

For each input the reader must return a correct result or raise an `XCiTError`. The target, which defines the kind of
input, checks the result. The error's message must have at most `MOST_LINES` printable lines of at most `LONGEST_LINE`
characters. For one input, the reader may use `SECONDS` of processor time and `MEMORY` bytes of additional memory.
"""

import contextlib
import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType
from typing import TextIO

from xcit.errors import XCiTError

LONGEST_LINE = 400
MOST_LINES = 15
SECONDS = 5
MEMORY = 2**30

_DEEPEST = 10_000

_SILENCE = 120
"""If the process reports nothing for this number of seconds, it counts as hung; generous, for busy machines."""


@dataclass(frozen=True)
class Target:
    """One kind of input, and its reader.

    Attributes:
        name: name of the kind.
        make: returns a damaged input from a seeded random generator, as the bytes of a file.
        read: reads the file; raises an `XCiTError` if the reader refuses it, an `AssertionError` if a result is wrong.
        suffix: suffix of the file.
    """

    name: str
    make: Callable[[Random], bytes]
    read: Callable[[Path], object]
    suffix: str = ""


@dataclass
class Outcome:
    """The result of a run of fuzz tests.

    Attributes:
        num_read: number of inputs with a correct result.
        num_refused: number of inputs that were refused with an `XCiTError`.
        failures: descriptions of the failures, by the number of the input.
        reasons: number of refusals for each reason.
        seconds: processor time of the slowest input.
        memory: largest additional memory, in bytes, compared with the process before its first input.
    """

    num_read: int = 0
    num_refused: int = 0
    failures: dict[int, str] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    memory: int = 0

    def __str__(self) -> str:
        return (
            f"{self.num_read} read, {self.num_refused} refused, {len(self.failures)} failed; "
            f"slowest {self.seconds:.2f} s, most memory {self.memory >> 20} MB"
        )


class TooSlowError(BaseException):
    """Raised if a reader takes too long. Not an `Exception`, so that no reader treats it as an error of the file."""


def fuzz(target: Target, numbers: range, *, seed: int = 0, keep: Path | None = None) -> Outcome:
    """Runs the inputs with these numbers. An input depends only on the target, the seed and its number.

    Args:
        target: kind of input.
        numbers: numbers of the inputs.
        seed: seed of all inputs.
        keep: folder to which failed inputs are written; None writes none.
    """
    outcome = Outcome()
    left = list(numbers)
    while left:
        done = _in_process(target, left, seed, outcome)
        left = left[done:]
    if keep is not None:
        for number in outcome.failures:
            (keep / f"{target.name}-{seed}-{number}{target.suffix}").write_bytes(_input(target, seed, number))
    return outcome


def _input(target: Target, seed: int, number: int) -> bytes:
    usual = sys.getrecursionlimit()
    sys.setrecursionlimit(_DEEPEST)  # so that inputs can be nested deeper than a reader accepts
    try:
        return target.make(Random(f"{target.name} {seed} {number}"))
    finally:
        sys.setrecursionlimit(usual)


def _in_process(target: Target, numbers: list[int], seed: int, outcome: Outcome) -> int:
    """Runs inputs in a forked process; returns the number of processed inputs: fewer than all after a crash or hang."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            with os.fdopen(writing, "w") as out, tempfile.TemporaryDirectory() as folder:
                _child(target, numbers, seed, out, Path(folder))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    done = 0
    with os.fdopen(reading) as lines:
        while True:
            if not select.select([lines], [], [], _SILENCE)[0]:
                os.kill(child, signal.SIGKILL)
                outcome.failures[numbers[done]] = f"hung: no end within {_SILENCE} s"
                done += 1
                break
            line = lines.readline()
            if not line:
                break
            kind, text, seconds, memory = json.loads(line)
            outcome.seconds, outcome.memory = max(outcome.seconds, seconds), max(outcome.memory, memory)
            if kind == "failed":
                outcome.failures[numbers[done]] = text
            elif kind == "refused":
                outcome.num_refused += 1
                outcome.reasons[text] += 1
            else:
                outcome.num_read += 1
            done += 1
    _, status = os.waitpid(child, 0)
    if done < len(numbers) and numbers[max(0, done - 1)] not in outcome.failures:
        outcome.failures[numbers[done]] = f"the process died: {os.waitstatus_to_exitcode(status)}"
        done += 1
    return done


def _child(target: Target, numbers: list[int], seed: int, out: TextIO, folder: Path) -> None:
    def ring(number: int, frame: FrameType | None) -> None:
        raise TooSlowError

    signal.signal(signal.SIGPROF, ring)
    first = _most_memory()
    for number in numbers:
        path = folder / f"input{target.suffix}"
        path.write_bytes(_input(target, seed, number))
        before, started = _most_memory(), time.process_time()
        kind, text = _read(target, path)
        seconds, most = time.process_time() - started, _most_memory()
        if most - before > MEMORY and kind != "failed":
            kind, text = "failed", f"took {(most - before) >> 20} MB"
        out.write(f"{json.dumps([kind, text, seconds, most - first])}\n")
        out.flush()


def _most_memory() -> int:
    """Returns the peak memory of this process in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _read(target: Target, path: Path) -> tuple[str, str]:
    with warnings.catch_warnings(record=True) as noise, _quiet():
        warnings.simplefilter("always")
        try:
            with _limit():  # inside `try`, because the alarm may come while `_limit` ends
                target.read(path)
            kind, text = "read", ""
        except XCiTError as error:
            message = str(error).replace(str(path), "FILE")
            kind, text = "refused", message
            lines = message.split("\n")
            if len(lines) > MOST_LINES or not all(
                0 < len(line) <= LONGEST_LINE and line.isprintable() for line in lines
            ):
                kind, text = "failed", f"message of {len(message)} characters: {message[:1000]!r}"
        except TooSlowError:
            kind, text = "failed", f"took more than {SECONDS} s\n{_last_frames()}"
        except BaseException:
            kind, text = "failed", traceback.format_exc(limit=-8)
    if noise and kind != "failed":
        kind, text = "failed", f"warned: {noise[0].message}"
    return kind, text


def _last_frames() -> str:
    return "".join(traceback.format_tb(sys.exc_info()[2])[-4:])


@contextlib.contextmanager
def _limit() -> Iterator[None]:
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Discards the messages that C libraries print about damaged files."""
    null, saved = os.open(os.devnull, os.O_WRONLY), os.dup(2)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)
