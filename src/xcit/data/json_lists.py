"""Reads the lists of a JSON file element by element, so that the whole file is never in memory."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from xcit.errors import XCiTError
from xcit.regular import regular

_CHUNK = 1 << 20
_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\n\r]*")


def json_lists(source: Path) -> Iterator[tuple[str, str | None, Any]]:
    """Yields the contents of the JSON object in a file.

    If the value of a key is a list, the function yields (key, None, []), and then (key, text, element) for each element
    of the list; `text` is the JSON text of the element. For any other value, it yields (key, None, value). If the file
    contains a JSON value that is not an object, nothing is yielded.

    Raises:
        XCiTError: if the file can't be read, or is not JSON.
    """
    try:
        with regular(source).open("rb") as raw:
            encoding = json.detect_encoding(raw.read(4))
        with source.open(encoding=encoding, newline="") as file:
            yield from _members(_Text(file))
    except OSError as error:
        raise XCiTError(f"{source}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise XCiTError(f"{source}: not a JSON file: {error}") from None


class _Text:
    """A JSON text that is parsed step by step. Only a part of the text, the window, is in memory."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.window, self.place, self.num_before = file, "", 0, 0

    def peek(self) -> str:
        """Skips white space, and returns the next character; returns "" at the end of the text."""
        while True:
            space = _SPACE.match(self.window, self.place)
            assert space is not None
            self.place = space.end()
            if self.place < len(self.window) or not self._read_on():
                return self.window[self.place : self.place + 1]

    def take(self, character: str) -> None:
        """Skips white space and the character after it.

        Raises:
            ValueError: if this character is not `character`.
        """
        if self.peek() != character:
            raise ValueError(f"expecting {character!r} at character {self.num_before + self.place}")
        self.place += 1

    def value(self) -> tuple[str, Any]:
        """Parses the next value, and returns its JSON text and the value.

        Raises:
            ValueError: if the text is not valid JSON.
        """
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.window, self.place)
            except json.JSONDecodeError as error:
                if not self._read_on():
                    raise ValueError(f"{error.msg} at character {self.num_before + error.pos}") from None
                continue
            # At the end of the window a number may be incomplete: "1e-7" may be cut off to "1e-", which parses as 1.
            if end + len("e-") < len(self.window) or not self._read_on():
                text, self.place = self.window[self.place : end], end
                return text, value

    def elements(self, brackets: str) -> Iterator[None]:
        """Yields None at the start of each element of a list or object; the caller must then parse the element.

        `brackets` is "[]" for a list and "{}" for an object.
        """
        self.take(brackets[0])
        if self.peek() != brackets[1]:
            yield
            while self.peek() == ",":
                self.take(",")
                yield
        self.take(brackets[1])

    def _read_on(self) -> bool:
        left = self.window[self.place :]
        more = self.file.read(max(_CHUNK, len(left)))
        if more:
            self.num_before += self.place
            self.window, self.place = left + more, 0
        return bool(more)


def _members(text: _Text) -> Iterator[tuple[str, str | None, Any]]:
    if text.peek() != "{":
        text.value()
    else:
        for _ in text.elements("{}"):
            key = text.value()[1]
            if not isinstance(key, str):
                raise ValueError(f"{key!r} is not a valid key of an object")
            text.take(":")
            if text.peek() != "[":
                yield key, None, text.value()[1]
                continue
            yield key, None, []
            for _ in text.elements("[]"):
                yield key, *text.value()
    if text.peek():
        raise ValueError(f"extra data at character {text.num_before + text.place}")
