"""Opens data sets of tar shards (`wds:PATTERN`): finds the shards, the class names and the number of images."""

import glob
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from xcit.data.remote import is_url, open_url, read_url
from xcit.data.samples import StreamSample, numbered_classes, parse_class_names
from xcit.data.tar_samples import read_tar
from xcit.errors import XCiTError
from xcit.weights.fetch import cache_dir


@dataclass(frozen=True)
class TarShards:
    """Tar files at paths or URLs, as a stream of labelled images (see `LabelledStream`). Each tar file is a shard."""

    shards: tuple[str, ...]
    class_ids: tuple[str, ...]
    num_images: int

    @property
    def num_shards(self) -> int:
        """Number of tar files."""
        return len(self.shards)

    def shard(self, index: int) -> Iterator[StreamSample]:
        """Yields the samples of one tar file."""
        return read_tar(self.shards[index], len(self.class_ids))


def open_shards(data: str, num_classes: int | None) -> TarShards:
    """Opens the shards named by `wds:PATTERN` or `wds:PATTERN#COUNT`; the arguments are those of `open_stream`.

    Raises:
        XCiTError: if shards are missing, or the number of images or of classes is unknown.
    """
    found = re.fullmatch(r"wds:(.*?)(?:#(\d+))?", data)
    assert found is not None
    shards = list_shards(found[1])
    names = _read_beside(shards[0], "classes.txt")
    if names is not None:
        class_ids = parse_class_names(names.decode(errors="replace"))
    elif num_classes is not None:
        class_ids = numbered_classes(num_classes)
    else:
        raise XCiTError(
            f"{data}: the classes are not known: write a file classes.txt beside the first shard, with a name per line"
        )
    num_images = int(found[2]) if found[2] else _recorded_images(shards)
    if num_images is None:
        if any(map(is_url, shards)):
            raise XCiTError(
                f"{data}: the number of images is not known: write a file sizes.json beside the shards "
                f'({{"NAME.tar": COUNT, ...}}), or add the number to the name, as in {data}#1281167'
            )
        num_images = _counted_images(shards)
    return TarShards(tuple(shards), class_ids, num_images)


def list_shards(pattern: str) -> list[str]:
    """Returns the paths and URLs of the shards that a pattern stands for, without duplicates.

    `{000..146}` stands for each number from 000 to 146, and `{a,b}` stands for `a` and for `b`. Several patterns are
    joined by `::`. In paths, `*`, `?`, `[...]` and `**` match files. WebDataset's commands (`pipe:`) are never run.

    Raises:
        XCiTError: if a shard does not exist or can't be opened, or is neither a path nor a URL.
    """
    shards: dict[str, None] = {}
    for part in pattern.split("::"):
        for place in _expand_braces(part):
            scheme = re.match(r"\s*([a-z][a-z0-9+.-]+):", place)
            if scheme and scheme[1] == "pipe":
                raise XCiTError(f"wds:{pattern}: commands (pipe:) are not run; give paths or URLs of the shards")
            if scheme and not is_url(place):
                raise XCiTError(
                    f"wds:{pattern}: shards are read from paths and URLs (PROTOCOL://...), not {scheme[1]}:"
                )
            matches = [place] if is_url(place) or not glob.has_magic(place) or Path(place).is_file() else _glob(place)
            shards |= dict.fromkeys(matches)
    _check(pattern, list(shards))
    return list(shards)


def _expand_braces(pattern: str) -> list[str]:
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        return [pattern]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        width = len(numbers[1]) if numbers[1].startswith("0") else 0
        values = [f"{number:0{width}d}" for number in range(first, last + 1)]
    else:
        values = found[1].split(",")
    if len(values) < 2:
        raise XCiTError(f"wds:{pattern}: {found[0]} is neither a rising range such as {{000..146}} nor a list {{a,b}}")
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [shard for value in values for shard in _expand_braces(before + value + after)]


def _glob(pattern: str) -> list[str]:
    matches = sorted(path for path in glob.glob(pattern, recursive=True) if not Path(path).is_dir())  # noqa: PTH207
    if not matches:
        raise XCiTError(f"wds:{pattern}: no file matches this pattern")
    return matches


def _check(pattern: str, shards: Sequence[str]) -> None:
    """Checks that all shards on disk exist, and that the first URL and the last URL can be opened.

    Raises:
        XCiTError: if a shard is missing.
    """
    missing = [shard for shard in shards if not is_url(shard) and not Path(shard).is_file()]
    if missing:
        raise XCiTError(
            f"wds:{pattern}: {len(missing)} of the {len(shards)} shards are missing, the first is {missing[0]}; "
            "copy them to these paths, or change the pattern"
        )
    urls = [shard for shard in shards if is_url(shard)]
    for url in dict.fromkeys(urls[:1] + urls[-1:]):
        open_url(url, waits=()).close()


def _read_beside(shard: str, name: str) -> bytes | None:
    """Returns the contents of the small file `name` in the folder of a shard; None if the file does not exist."""
    place = shard.rpartition("/")[0] + "/" + name if is_url(shard) else str(Path(shard).parent / name)
    if is_url(place):
        return read_url(place)
    return Path(place).read_bytes() if Path(place).is_file() else None


def _recorded_images(shards: Sequence[str]) -> int | None:
    """Returns the number of images according to files beside the shards; None if the files do not list all shards.

    The file in a folder of shards is `sizes.json`, an object that maps names of tar files to numbers of images. If a
    folder has no `sizes.json`, WebDataset's `index.json` is used.
    """
    counts: dict[str, int] = {}
    folders = {shard.rpartition("/")[0]: shard for shard in shards}
    for folder, shard in folders.items():
        for name in ("sizes.json", "index.json"):
            text = _read_beside(shard, name)
            if text is None:
                continue
            try:
                record = json.loads(text)
                if name == "index.json":
                    record = {entry["url"].rpartition("/")[2]: entry["nsamples"] for entry in record["shardlist"]}
                counts |= {f"{folder}/{file}": int(count) for file, count in record.items()}
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
                raise XCiTError(
                    f"{folder}/{name}: the file does not list the number of images per shard; remove it"
                ) from None
            break
    names = ["/".join(shard.rpartition("/")[::2]) for shard in shards]
    return sum(counts[name] for name in names) if counts.keys() >= set(names) else None


def _counted_images(shards: Sequence[str]) -> int:
    """Counts the images in shards on disk. Counting a million images takes minutes, so the result is cached."""
    states = [(str(Path(shard).absolute()), *_state(shard)) for shard in shards]
    key = hashlib.sha256(json.dumps(states).encode()).hexdigest()[:32]
    record = cache_dir() / "shards" / f"{key}.json"
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{record}.lock"):  # only one process per machine counts the images
            if not record.is_file():
                part = record.with_suffix(".part")
                part.write_text(json.dumps({"first": shards[0], "num_images": _count(shards)}))
                part.replace(record)
            return int(json.loads(record.read_text())["num_images"])
    except OSError:  # the cache can't be written
        return _count(shards)


def _state(shard: str) -> tuple[int, int]:
    status = Path(shard).stat()
    return status.st_size, status.st_mtime_ns


def _count(shards: Sequence[str]) -> int:
    return sum(1 for shard in shards for _ in read_tar(shard, 1))
