"""What a search for images passes by, counted, so that nothing is left out in silence."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

_SHOWN = 5


@dataclass
class PassedBy:
    """What a search for images passes by.

    Attributes:
        known: names of files that lie among images and are read, such as lists: they are not counted.
        suffixes: files that are not images by their suffix, by it.
        num_hidden: hidden files, and hidden folders, which are not looked into.
        num_again: files that were named before, and folders that a link leads to a second time.
        num_no_classes: folders that are no classes by their name, as ImageNet's `meta`.
        num_results: images in the folder that gets the results.
    """

    known: Collection[str] = ()
    suffixes: Counter[str] = field(default_factory=Counter)
    num_hidden: int = 0
    num_again: int = 0
    num_no_classes: int = 0
    num_results: int = 0

    def add(self, path: Path) -> None:
        """Counts a file that is no image by its name."""
        if path.name.startswith("."):
            self.num_hidden += 1
        elif path.name not in self.known:
            self.suffixes[path.suffix.lower() or "no suffix"] += 1

    def __str__(self) -> str:
        """Returns all counts in one line, such as "3 files that are not images by their suffix: .txt (3); 1 hidden".

        It is empty if nothing was passed by.
        """
        kinds = ", ".join(f"{suffix} ({count})" for suffix, count in self.suffixes.most_common(_SHOWN))
        counts = (
            (self.suffixes.total(), f"files that are not images by their suffix: {kinds}{self._others()}"),
            (self.num_hidden, "hidden"),
            (self.num_again, "named or linked a second time"),
            (self.num_no_classes, "folders that are no classes by their name"),
            (self.num_results, "in the folder of the results"),
        )
        return "; ".join(f"{count} {what}" for count, what in counts if count)

    def _others(self) -> str:
        return ", ..." if len(self.suffixes) > _SHOWN else ""
