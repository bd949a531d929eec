"""Counts the files and folders that a search for images leaves out, so that they can be reported to the user."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

_SHOWN = 5


@dataclass
class PassedBy:
    """Counts of the files and folders that a search for images leaves out.

    Attributes:
        known: names of files that are expected beside images, such as lists of labels. These files are not counted.
        suffixes: number of files that do not have the suffix of an image, for each suffix.
        num_hidden: number of hidden files and hidden folders. Hidden folders are not searched.
        num_again: number of files that were found before, plus number of links to folders that were searched before.
        num_no_classes: number of folders with a name that is never a class, such as `meta` in ImageNet.
        num_results: number of images in the folder to which the command writes its results.
    """

    known: Collection[str] = ()
    suffixes: Counter[str] = field(default_factory=Counter)
    num_hidden: int = 0
    num_again: int = 0
    num_no_classes: int = 0
    num_results: int = 0

    def add(self, path: Path) -> None:
        """Counts a file that is left out because it is hidden or does not have the suffix of an image."""
        if path.name.startswith("."):
            self.num_hidden += 1
        elif path.name not in self.known:
            self.suffixes[path.suffix.lower() or "no suffix"] += 1

    def __str__(self) -> str:
        """Returns all counts in one line, such as "3 files without an image suffix: .txt (3); 1 hidden".

        The result is "" if nothing was left out.
        """
        kinds = ", ".join(f"{suffix} ({count})" for suffix, count in self.suffixes.most_common(_SHOWN))
        counts = (
            (self.suffixes.total(), f"files without an image suffix: {kinds}{self._others()}"),
            (self.num_hidden, "hidden"),
            (self.num_again, "named or linked a second time"),
            (self.num_no_classes, "folders with a name that no class has, such as meta"),
            (self.num_results, "in the folder of the results"),
        )
        return "; ".join(f"{count} {what}" for count, what in counts if count)

    def _others(self) -> str:
        return ", ..." if len(self.suffixes) > _SHOWN else ""
