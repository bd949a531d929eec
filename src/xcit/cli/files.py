"""The files of commands for many images: which images are read, and the names of the results."""

import os
from collections.abc import Sequence
from pathlib import Path

from xcit.errors import XCiTError


def images_outside(inputs: Sequence[str], out: Path) -> list[Path]:
    """Returns the input images, without those that an earlier run wrote to `out`, unless they are named one by one."""
    from xcit.images.read import find_images

    named = {Path(item) for item in inputs}
    found = find_images(inputs)
    images = [path for path in found if path in named or not path.resolve().is_relative_to(out.resolve())]
    if not images:
        raise XCiTError(f"{out}: holds all images of the input: choose another folder for the results")
    return images


def result_names(paths: Sequence[Path]) -> list[Path]:
    """Returns names for each image's results: its path below the common folder, without suffix if that is unique."""
    names = [Path("stdin" if str(path) == "-" else path) for path in paths]
    places = [Path(os.path.abspath(name)) for name in names]  # noqa: PTH100  (Path.absolute keeps "..")
    top = os.path.commonpath([place.parent for place in places])
    whole = [place.relative_to(top) for place in places]
    bare = [name.with_suffix("") for name in whole]
    return bare if len({str(name).casefold() for name in bare}) == len(bare) else whole


def beside(place: Path, ending: str) -> Path:
    """Returns a file whose name is that of a path plus an ending."""
    return place.with_name(f"{place.name}{ending}")
