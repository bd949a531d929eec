"""Chooses which image files a command reads, and the names of its result files."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xcit.cli.lines import say
from xcit.cli.processes import is_main
from xcit.errors import XCiTError

if TYPE_CHECKING:
    from xcit.images.passed_by import PassedBy


def images_outside(inputs: Sequence[str], out: Path) -> list[Path]:
    """Returns the image files of the inputs, without the files in the folder `out`.

    Files in `out` may be results of an earlier run. But a file in `out` is returned if its own path is one of the
    inputs. A line on standard error says how many files were left out.

    Raises:
        XCiTError: if there are no images, or all images are in `out`.
    """
    from xcit.images.find import find_images
    from xcit.images.passed_by import PassedBy

    named, passed_by = {Path(item) for item in inputs}, PassedBy()
    found = find_images(inputs, passed_by)
    images = [path for path in found if path in named or not path.resolve().is_relative_to(out.resolve())]
    if not images:
        raise XCiTError(f"{out}: contains all images of the input: choose another folder for the results")
    passed_by.num_results = len(found) - len(images)
    say_passed_by(passed_by)
    return images


def say_passed_by(passed_by: "PassedBy") -> None:
    """Prints the number and the types of the files that a search for images left out, if any, on standard error."""
    if str(passed_by) and is_main():
        say(f"xcit: left out: {passed_by}", err=True, indent=2)


def result_names(paths: Sequence[Path]) -> list[Path]:
    """Returns a name for the results of each image: the image's path relative to the common folder of all images.

    The suffixes are removed, unless two images would get the same name.
    """
    names = [Path("stdin" if str(path) == "-" else path) for path in paths]
    places = [Path(os.path.abspath(name)) for name in names]  # noqa: PTH100  (Path.absolute keeps "..")
    top = os.path.commonpath([place.parent for place in places])
    whole = [place.relative_to(top) for place in places]
    bare = [name.with_suffix("") for name in whole]
    return bare if len({str(name).casefold() for name in bare}) == len(bare) else whole


def beside(place: Path, ending: str) -> Path:
    """Returns a path with an ending appended to its last part."""
    return place.with_name(f"{place.name}{ending}")
