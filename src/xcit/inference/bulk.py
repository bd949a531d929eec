"""Writes results of many images to a folder of Parquet parts with a manifest, in any number of processes.

The images are divided into units (see `Unit`), each of which is processed by one process. The rows of a unit become one
or more parts, with a fixed number of images each. A part is written completely, and then added to the manifest. So the
results of a killed run are valid, and a resumed run computes the parts that are missing in the manifest. The names of
the parts sort in the order of the images, so reading the folder concatenates them correctly.

Each image has a row: `file`, `error` (null if the image could be read), and the columns of the command (null if the
image could not be read).
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock

from xcit.data.inputs import Inputs, Unit
from xcit.errors import XCiTError
from xcit.extras import need_packages
from xcit.inference.reading import Unreadable
from xcit.writing import make_folder, whole_file

MANIFEST = "_manifest.json"
"""The manifest's name begins with an underscore, so that readers of Parquet folders ignore it."""

_LOCK = ".lock"
_FORMAT = 1
_WAIT_SECONDS = 600.0
"""Time that other processes wait until the first process begins. It is longer than the time to load a model."""

_COMPARED = ("verb", "model", "digest", "arguments", "images_a_part", "num_units", "inputs")
"""Entries of the manifest that must be equal in a resumed run and in the run that it resumes."""

Manifest = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Job:
    """The conversion of images to rows.

    Attributes:
        verb: name of the command.
        model: name of the model.
        digest: digest of its weights.
        arguments: everything else that the rows depend on, as JSON values.
        columns: the columns after `file` and `error`, as a pyarrow schema.
        results: yields one result per image, in order.
        row: returns the columns of a result.
    """

    verb: str
    model: str
    digest: str
    arguments: Mapping[str, Any]
    columns: Any
    results: Callable[[Iterable[Any]], Iterator[Any]]
    row: Callable[[Any], Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Share:
    """The index of this process, and the number of processes."""

    rank: int = 0
    world_size: int = 1


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Callbacks: for each result, and for the number of images that were done before."""

    result: Callable[[Any], None] = lambda _: None
    skipped: Callable[[int], None] = lambda _: None


def write_parts(
    folder: Path,
    inputs: Inputs,
    job: Job,
    *,
    images_a_part: int,
    resume: bool = False,
    share: Share = Share(),
    progress: Progress = Progress(),
) -> Manifest:
    """Computes this process's share of the rows of all inputs, and writes them to a folder.

    Args:
        folder: a new or empty folder, or that of an earlier run of the same job.
        inputs: the images.
        job: the conversion of images to rows.
        images_a_part: number of rows in a part, which are in memory at once.
        resume: resume the run in the folder, or begin one if there is none.
        share: the index of this process and the number n of processes; each process takes every n-th unit.
        progress: called for each image.

    Returns:
        The manifest after this process's last part. Its `complete` tells whether all processes are done.

    Raises:
        XCiTError: if the folder holds something else, or holds this job and `resume` is false; if a file can't be
            written, or a shard can't be read.
    """
    need_packages("Parquet", "pyarrow")
    manifest = _begin(folder, inputs, job, images_a_part, resume, share)
    for number in range(share.rank, len(inputs.units), share.world_size):
        done = [part for name, part in manifest["parts"].items() if name.startswith(_part_name(number))]
        progress.skipped(sum(part["images"] for part in done))
        if number not in manifest["finished"]:
            manifest = _write_unit(folder, number, inputs.units[number], job, images_a_part, len(done), progress)
    return manifest


def read_parts(folder: Path, columns: list[str] | None = None) -> Any:
    """Reads all finished rows, in the order of the images, as a pyarrow table; `columns` selects some columns.

    Raises:
        XCiTError: if the folder holds no results.
    """
    need_packages("Parquet", "pyarrow")
    import pyarrow
    from pyarrow import parquet

    parts = [folder / name for name in sorted(read_manifest(folder)["parts"])]
    if not parts:
        raise XCiTError(f"{folder}: no part is done yet")
    return pyarrow.concat_tables([parquet.read_table(path, columns=columns) for path in parts])


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest of a folder.

    Raises:
        XCiTError: if there is no manifest, or it has another format.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise XCiTError(f"{folder}: no results, it has no {MANIFEST}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise XCiTError(f"{path}: can't be read: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise XCiTError(f"{path}: no manifest of this version of xcit")
    return manifest


def _begin(folder: Path, inputs: Inputs, job: Job, images_a_part: int, resume: bool, share: Share) -> Manifest:
    """Returns the manifest at the start of this process; the first process creates it."""
    wanted: Manifest = {
        "format": _FORMAT,
        "verb": job.verb,
        "model": job.model,
        "digest": job.digest,
        "arguments": json.loads(json.dumps(job.arguments)),
        "images_a_part": images_a_part,
        "num_units": len(inputs.units),
        "inputs": inputs.sha256,
        "versions": [{name: version(name) for name in ("xcit", "torch")}],
        "parts": {},
        "finished": [],
        "complete": False,
    }
    path = folder / MANIFEST
    if share.rank == 0:
        if not path.exists() and folder.exists() and (not folder.is_dir() or not all(map(_is_ours, folder.iterdir()))):
            raise XCiTError(f"{folder}: exists already, and holds no results to resume: choose another folder")
        if not path.exists() or not read_manifest(folder)["parts"]:  # a run that failed at once has no results to lose
            make_folder(folder)
            _write(path, wanted)
        elif not resume:
            raise XCiTError(f"{folder}: holds results already: continue with --resume, or choose another folder")
    patience = time.monotonic() + _WAIT_SECONDS
    while not path.exists() or (_difference(read_manifest(folder), wanted) and not read_manifest(folder)["parts"]):
        if time.monotonic() > patience:
            raise XCiTError(f"{folder}: the first process has not begun it")
        time.sleep(0.05)
    found = read_manifest(folder)
    if key := _difference(found, wanted):
        what = "images are others" if key == "inputs" else f"{key} is {found.get(key)}, not {wanted[key]}"
        raise XCiTError(f"{folder}: holds results of another run, whose {what}: choose another folder")
    if wanted["versions"][0] in found["versions"]:
        return found
    return _update(folder, lambda manifest: manifest["versions"].extend(wanted["versions"]))


def _difference(found: Manifest, wanted: Manifest) -> str:
    """Returns the first difference between two runs, "" if there is none."""
    return next((key for key in _COMPARED if found.get(key) != wanted[key]), "")


def _write_unit(
    folder: Path, number: int, unit: Unit, job: Job, images_a_part: int, num_parts: int, progress: Progress
) -> Manifest:
    """Writes the unfinished parts of a unit; `num_parts` parts are finished."""
    from pyarrow import field, schema, string

    columns = schema([field("file", string()), field("error", string()), *job.columns])
    rows: list[dict[str, Any]] = []

    def finish_part(*, is_last: bool) -> Manifest:
        name = f"{_part_name(number)}{num_parts:05}.parquet"
        if rows:
            _write_table(folder / name, rows, columns)
        part = {"images": len(rows), "unreadable": sum(row["error"] is not None for row in rows)}

        def add(manifest: Manifest) -> None:
            if rows:
                manifest["parts"][name] = part
            if is_last:
                manifest["finished"] = sorted({*manifest["finished"], number})
                manifest["complete"] = len(manifest["finished"]) == manifest["num_units"]

        return _update(folder, add)

    for result in job.results(islice(unit.open(), num_parts * images_a_part, None)):
        if len(rows) == images_a_part:
            finish_part(is_last=False)
            num_parts += 1
            rows.clear()
        rows.append(_row(job, result))
        progress.result(result)
    return finish_part(is_last=True)


def _row(job: Job, result: Any) -> dict[str, Any]:
    is_bad = isinstance(result, Unreadable)
    # Parquet stores only UTF-8. Bytes of a file name that are not valid text are written as \udc...
    texts = {"file": result.source, "error": result.reason if is_bad else None}
    row = {name: text and text.encode(errors="backslashreplace").decode() for name, text in texts.items()}
    return row if is_bad else row | dict(job.row(result))


def _write_table(path: Path, rows: list[dict[str, Any]], columns: Any) -> None:
    import pyarrow
    from pyarrow import parquet

    with whole_file(path) as part:
        parquet.write_table(pyarrow.Table.from_pylist(rows, schema=columns), part)


def _update(folder: Path, change: Callable[[Manifest], object]) -> Manifest:
    """Changes the manifest; a lock admits one process at a time."""
    try:
        with FileLock(folder / _LOCK):
            manifest = read_manifest(folder)
            change(manifest)
            _write(folder / MANIFEST, manifest)
            return manifest
    except OSError as error:
        raise XCiTError(f"{folder / MANIFEST}: can't be written: {error.strerror or error}") from error


def _write(path: Path, manifest: Manifest) -> None:
    with whole_file(path) as part:
        part.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _part_name(number: int) -> str:
    """Returns the beginning of the names of a unit's parts."""
    return f"part-{number:05}-"


def _is_ours(path: Path) -> bool:
    """Whether a file is the lock or a temporary file of this package, which may exist before the manifest."""
    return path.name == _LOCK or path.name.startswith(".xcit-")
