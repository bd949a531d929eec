"""Writes results of many images to a folder of Parquet parts with a manifest, in any number of processes.

A part is a Parquet file. The manifest is a JSON file that lists the finished parts. The images are divided into units
(see `Unit`). One process computes the rows of a unit, and writes the rows to one or more parts. All parts of a unit
have the same number of images, except the last part.

A part is written completely, and then added to the manifest. So the results of a killed run are valid, and a resumed
run computes the parts that are missing in the manifest. If the parts are sorted by name, their rows are in the order
of the images.

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
"""Name of the manifest. It begins with an underscore, so that readers of Parquet folders ignore the file."""

_LOCK = ".lock"
_FORMAT = 1
_WAIT_SECONDS = 600.0
"""Maximum time in seconds that a process waits until the first process has created the manifest.

The first process may load a model before it creates the manifest. This takes less time than the maximum.
"""

_COMPARED = ("verb", "model", "digest", "arguments", "images_a_part", "num_units", "inputs")
"""Entries of the manifest that must not change when a run is resumed."""

Manifest = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A command that converts images to rows.

    Attributes:
        verb: name of the command.
        model: name of the model.
        digest: digest of the model's weights.
        arguments: everything else that the rows depend on, as JSON values.
        columns: the columns after `file` and `error`, as pyarrow fields.
        results: a function that yields one result for each image, in order.
        row: a function that returns the values of the columns for a result.
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
    """The index of this process (`rank`), and the number of processes (`world_size`)."""

    rank: int = 0
    world_size: int = 1


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Callbacks for the progress of a run.

    Attributes:
        result: called with each result.
        skipped: called with the number of images that an earlier run finished.
    """

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
        folder: a new or empty folder, or the folder of an earlier run of the same job.
        inputs: the images.
        job: the command that converts images to rows.
        images_a_part: number of images in a part. All rows of a part are in memory together.
        resume: resume the run in the folder, or begin a run if there is none.
        share: the index of this process and the number n of processes. Each process computes every n-th unit.
        progress: callbacks for the progress.

    Returns:
        The manifest after this process's last part. Its entry `complete` is true if all processes are done.

    Raises:
        XCiTError: if the folder contains other files or results of another job, if it contains results of this job and
            `resume` is false, if a file can't be written, or if a shard can't be read.
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
    """Reads all finished parts, in the order of the images, as a pyarrow table.

    Args:
        folder: the folder of the parts.
        columns: names of the columns to read; None means all columns.

    Raises:
        XCiTError: if the folder contains no results.
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
        XCiTError: if there is no manifest, or the manifest has another format.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise XCiTError(f"{folder}: no results: the folder has no {MANIFEST}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise XCiTError(f"{path}: can't be read: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise XCiTError(f"{path}: not a manifest that this version of xcit can read")
    return manifest


def _begin(folder: Path, inputs: Inputs, job: Job, images_a_part: int, resume: bool, share: Share) -> Manifest:
    """Returns the manifest as it is when this process starts. The first process creates it, and the others wait.

    Raises:
        XCiTError: if the folder can't be used for this job.
    """
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
            raise XCiTError(f"{folder}: already exists, but contains no results to resume: choose another folder")
        if not path.exists() or not read_manifest(folder)["parts"]:  # there are no results to lose
            make_folder(folder)
            _write(path, wanted)
        elif not resume:
            raise XCiTError(f"{folder}: already contains results: continue with --resume, or choose another folder")
    patience = time.monotonic() + _WAIT_SECONDS
    while not path.exists() or (_difference(read_manifest(folder), wanted) and not read_manifest(folder)["parts"]):
        if time.monotonic() > patience:
            raise XCiTError(f"{folder}: the first process has not created the manifest")
        time.sleep(0.05)
    found = read_manifest(folder)
    if key := _difference(found, wanted):
        what = "other images" if key == "inputs" else f"{key} {found.get(key)}, not {wanted[key]}"
        raise XCiTError(f"{folder}: contains results of another run ({what}): choose another folder")
    if wanted["versions"][0] in found["versions"]:
        return found
    return _update(folder, lambda manifest: manifest["versions"].extend(wanted["versions"]))


def _difference(found: Manifest, wanted: Manifest) -> str:
    """Returns the name of the first entry in which two manifests differ, or "" if there is none."""
    return next((key for key in _COMPARED if found.get(key) != wanted[key]), "")


def _write_unit(
    folder: Path, number: int, unit: Unit, job: Job, images_a_part: int, num_parts: int, progress: Progress
) -> Manifest:
    """Computes and writes the remaining parts of a unit. The unit's first `num_parts` parts are already finished."""
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
    # Parquet stores only UTF-8. Bytes of a file name that are not valid text are written as escapes such as \udc80.
    texts = {"file": result.source, "error": result.reason if is_bad else None}
    row = {name: text and text.encode(errors="backslashreplace").decode() for name, text in texts.items()}
    return row if is_bad else row | dict(job.row(result))


def _write_table(path: Path, rows: list[dict[str, Any]], columns: Any) -> None:
    import pyarrow
    from pyarrow import parquet

    with whole_file(path) as part:
        parquet.write_table(pyarrow.Table.from_pylist(rows, schema=columns), part)


def _update(folder: Path, change: Callable[[Manifest], object]) -> Manifest:
    """Changes the manifest and returns it. A lock ensures that only one process at a time does this."""
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
    """Returns the prefix of the file names of a unit's parts."""
    return f"part-{number:05}-"


def _is_ours(path: Path) -> bool:
    """Returns whether a file is the lock or a temporary file of this package.

    These files may exist in a folder without a manifest.
    """
    return path.name == _LOCK or path.name.startswith(".xcit-")
