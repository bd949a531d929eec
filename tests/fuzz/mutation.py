"""Damages inputs: the bytes of files, or the structure of JSON, YAML and pickle content."""

import math
import re
from collections.abc import Sequence
from random import Random
from typing import Any

MAX_BYTES = 2**21
"""Largest size in bytes of an input that a mutation creates."""

_NUMBERS = (b"0", b"-1", b"255", b"65536", b"2147483648", b"4294967295", b"99999999999999999999", b"1e400", b"NaN")
_WORDS = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\1\0\0", b"\0\0\1\0")

ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**30, 10**400, 0.5, -0.0),
    *(1e308, math.inf, -math.inf, math.nan, "", "0", "1e9", "null", "..", "/dev/zero", "\0", "\x1b[31m", "é" * 300),
    *([], {}, [[]], [None], [1, 2], {"a": 1}, {"": None}, "x" * 5000, [0] * 5000),
)
"""Values that `damaged_value` puts in place of others."""


def damaged(data: bytes, random: Random, others: Sequence[bytes] = ()) -> bytes:
    """Returns the bytes after one to six changes; 5 % of the inputs are not changed."""
    if random.random() < 0.05:
        return data
    for _ in range(random.choice((1, 1, 1, 2, 3, 6))):
        data = _once(data, random, others)[:MAX_BYTES]
    return data


def _once(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    if not data:
        return random.randbytes(random.randrange(1, 64))
    at = random.randrange(len(data))
    length = min(random.choice((1, 2, 4, 8, 64, 1024)), len(data) - at)
    # Many changes are near the start, because the first bytes of a file determine how the rest is read.
    if random.random() < 0.4:
        at = min(at, random.randrange(64))
    match random.randrange(10):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + bytes([data[at] ^ (1 << random.randrange(8))]) + data[at + 1 :]
        case 2:
            return data[:at] + random.randbytes(length) + data[at + length :]
        case 3:
            return data[:at] + data[at + length :]
        case 4:
            return data[:at] + data[at : at + length] * random.choice((2, 3, 1000)) + data[at + length :]
        case 5:
            return data[:at] + random.randbytes(length) + data[at:]
        case 6:
            word = random.choice(_WORDS)
            return data[:at] + word + data[at + len(word) :]
        case 7:
            return data[:at] + bytes(length) + data[at + length :]
        case 8 if others:
            other = random.choice(others)
            return data[:at] + other[random.randrange(max(1, len(other))) :]
        case _:
            found = list(re.finditer(rb"\d+", data[:4096]))
            if not found:
                return data[:at] + random.choice(_NUMBERS) + data[at:]
            match_ = random.choice(found)
            return data[: match_.start()] + random.choice(_NUMBERS) + data[match_.end() :]


def damaged_value(value: Any, random: Random, odd: Sequence[Any] = ODD_VALUES) -> Any:
    """Returns a copy of nested lists and dictionaries; one to four parts are replaced, removed, doubled or renamed."""
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        value = _replaced(value, random, odd)
    return value


def _replaced(value: Any, random: Random, odd: Sequence[Any]) -> Any:
    is_inner = isinstance(value, dict | list | tuple) and len(value) > 0
    if not is_inner or random.random() < 0.15:
        return _deep(random) if random.random() < 0.03 else random.choice(odd)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = random.choice(keys)
    items = dict(value) if isinstance(value, dict) else dict(enumerate(value))
    match random.randrange(8):
        case 0:
            del items[key]
        case 1 if isinstance(value, dict):
            items[random.choice(("", "x", 7, str(key).upper(), f"module.{key}"))] = items.pop(key)
        case 2 if isinstance(value, dict):
            items[random.choice(("extra", 7, "x" * 1000))] = random.choice(odd)
        case 3 if not isinstance(value, dict):
            items[len(keys)] = items[key]
        case _:
            items[key] = _replaced(items[key], random, odd)
    return items if isinstance(value, dict) else type(value)(items.values())


def _deep(random: Random) -> Any:
    value: Any = 1
    for _ in range(random.choice((50, 900))):
        value = [value] if random.random() < 0.5 else {"a": value}
    return value
