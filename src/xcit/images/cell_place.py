"""Where the cells of a map lie that a model makes of an image: in the image's file, and on the ground."""

from dataclasses import dataclass
from typing import Any

from xcit.images.rows import RowsInfo
from xcit.images.transforms import IDENTITY, Transform, enlarged


@dataclass(frozen=True, kw_only=True)
class CellPlace:
    """The place of a grid of cells; transforms as in `transforms.py`.

    A cell stands for the square of its patch's pixels. What the model sees there is centred on the first of them, so
    over a picture the map lies half a cell too far to the right and down; `draw/cells.py` has it in the middle.

    Attributes:
        source: the image's name.
        to_pixels: from column and row of a cell to those of the file's largest level.
        to_map: to coordinates of the map, if the image lies on one.
        crs: the system of these coordinates, WKT, if the file says it.
    """

    source: str
    to_pixels: Transform
    to_map: Transform | None = None
    crs: str | None = None

    @classmethod
    def of(cls, info: RowsInfo, patch_size: int) -> "CellPlace":
        """The cells of the image of which this is known."""
        place, transform = info.metadata.get("place", IDENTITY), info.metadata.get("transform")
        return cls(
            source=info.name,
            to_pixels=enlarged(place, patch_size, patch_size),
            to_map=None if transform is None else enlarged(transform, patch_size, patch_size),
            crs=info.metadata.get("crs"),
        )

    def described(self) -> dict[str, Any]:
        """As JSON has it: source, cell_to_pixel, cell_to_map and crs."""
        found: dict[str, Any] = {"source": self.source, "cell_to_pixel": list(self.to_pixels)}
        found["cell_to_map"] = None if self.to_map is None else list(self.to_map)
        return found | {"crs": self.crs}
