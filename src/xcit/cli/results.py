"""Writes classification results, one image at a time, to the screen, a JSON file or a CSV file."""

import csv
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

import click

from xcit.cli.files import beside
from xcit.errors import XCiTError
from xcit.writing import is_stream, whole_file

if TYPE_CHECKING:
    from xcit.inference.classify import Prediction
    from xcit.inference.reading import Unreadable


class Results(Protocol):
    """A destination for results, which are added one image at a time."""

    def add(self, result: "Prediction | Unreadable") -> None:
        """Writes one result."""


class ScreenResults:
    """Prints the name and the classes of each image on standard output; prints errors on standard error."""

    def add(self, result: "Prediction | Unreadable") -> None:
        """Prints one result."""
        if reason := getattr(result, "reason", None):
            click.echo(f"xcit: {reason}", err=True)
            return
        click.echo(result.source)
        for scored in getattr(result, "classes", ()):
            click.echo(f"  {100 * scored.score:6.2f}%  {scored.name}")


class JSONResults:
    """Writes a JSON array with an object for each image.

    The object is `{"file", "classes": [{"name", "index", "score"}]}` or, for an unreadable image, `{"file", "error"}`.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file, self._count, self.num_readable = file, 0, 0

    def add(self, result: "Prediction | Unreadable") -> None:
        """Writes one object."""
        row: dict[str, object] = {"file": result.source}
        if reason := getattr(result, "reason", None):
            row["error"] = reason
        else:
            self.num_readable += 1
            row["classes"] = [
                {"name": scored.name, "index": scored.index, "score": scored.score}
                for scored in getattr(result, "classes", ())
            ]
        self._file.write(("[\n " if self._count == 0 else ",\n ") + json.dumps(row, ensure_ascii=False))
        self._count += 1

    def finish(self) -> None:
        """Closes the array."""
        self._file.write("\n]\n" if self._count else "[]\n")


class CSVResults:
    """Writes a CSV row for each class of an image: file, rank (from 1), index, name, score, error."""

    def __init__(self, file: IO[str]) -> None:
        self._rows, self.num_readable = csv.writer(file), 0
        self._rows.writerow(["file", "rank", "index", "name", "score", "error"])

    def add(self, result: "Prediction | Unreadable") -> None:
        """Writes the rows of one image."""
        if reason := getattr(result, "reason", None):
            self._rows.writerow([result.source, "", "", "", "", reason])
            return
        self.num_readable += 1
        for rank, scored in enumerate(getattr(result, "classes", ()), start=1):
            self._rows.writerow([result.source, rank, scored.index, scored.name, f"{scored.score:.6f}", ""])

    def finish(self) -> None:
        """Does nothing: a CSV table has no end mark."""


@contextmanager
def open_results(json_path: str | None, csv_path: str | None) -> Iterator[Results]:
    """Yields the destination of the results: a JSON or CSV file, or the screen if both paths are None.

    An earlier file is replaced only when the new file is complete. After an interrupt, the incomplete results are
    written to the file; if there is an earlier file, they are written to NAME.part instead. If no input could be read,
    an earlier file is kept.

    Raises:
        XCiTError: if both paths are given, or the file can't be written.
    """
    if json_path and csv_path:
        raise XCiTError("give --json or --csv, not both")
    path = json_path or csv_path
    if path is None:
        yield ScreenResults()
        return
    with _output(path) as file:
        results = CSVResults(file) if csv_path else JSONResults(file)
        try:
            yield results
        finally:
            results.finish()
        if not results.num_readable and path != "-" and Path(path).is_file():
            raise _NoResults


class _NoResults(Exception):  # noqa: N818  (it is no error)
    """Raised if no input could be read, so that an earlier result is kept."""


@contextmanager
def _output(path: str) -> Iterator[IO[str]]:
    if path == "-":
        yield sys.stdout
        sys.stdout.flush()  # if the pipe is closed, the error is raised here, and click handles it
        return
    target = Path(path)
    if target.is_dir():
        raise XCiTError(f"{path}: a folder, not a file for results")
    if is_stream(target):  # no temporary file is used, so that a reader of the pipe gets each result at once
        with _opened(target) as file:
            yield file
        return
    interrupt: KeyboardInterrupt | None = None
    with whole_file(target) as part:
        try:
            with _opened(part) as file:
                yield file
        except KeyboardInterrupt as error:
            interrupt = error
            if target.exists():
                part.replace(beside(target, ".part"))
        except _NoResults:
            part.unlink()
            click.echo(f"xcit: {path}: left as it was", err=True)
    if interrupt is not None:
        raise interrupt


def _opened(path: Path) -> IO[str]:
    # Bytes of a file name that are not valid text are written as escapes such as \udc80, as in JSON.
    return path.open("w", encoding="utf-8", errors="backslashreplace", newline="")


def status_of(num_unreadable: int, num_images: int) -> int:
    """Returns the exit status of a command for several images; prints how many images could not be read, if any."""
    from xcit.cli import SOME_FAILED

    if not num_unreadable:
        return 0
    click.echo(f"xcit: {num_unreadable} of {num_images} images could not be read", err=True)
    return SOME_FAILED
