"""Files that verbs write for many images: which images, and what the files are called."""

import os
from collections.abc import Sequence
from pathlib import Path

from xcit.errors import XCiTError


def images_outside(inputs: Sequence[str], out: Path) -> list[Path]:
    """The images that are meant, without those that an earlier run left in `out`, unless they are named one by one."""
    from xcit.images.find import find_images

    named = {Path(item) for item in inputs}
    found = find_images(inputs)
    images = [path for path in found if path in named or not path.resolve().is_relative_to(out.resolve())]
    if not images:
        raise XCiTError(f"{out}: holds all images of the input: choose another folder for the results")
    return images


def result_names(paths: Sequence[Path]) -> list[Path]:
    """What to call each image's files: its place below the folder that all share, without suffix if that will do."""
    names = [Path("stdin" if str(path) == "-" else path) for path in paths]
    places = [Path(os.path.abspath(name)) for name in names]  # noqa: PTH100  (Path.absolute keeps "..")
    top = os.path.commonpath([place.parent for place in places])
    whole = [place.relative_to(top) for place in places]
    bare = [name.with_suffix("") for name in whole]
    return bare if len({str(name).casefold() for name in bare}) == len(bare) else whole


def beside(place: Path, ending: str) -> Path:
    """A file whose name is a place's and an ending."""
    return place.with_name(f"{place.name}{ending}")
