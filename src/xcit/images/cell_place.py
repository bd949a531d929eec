"""Describes where the cells of a map are located, in the image file and on the ground."""

from dataclasses import dataclass
from typing import Any

from xcit.images.rows import RowsInfo
from xcit.images.transforms import IDENTITY, Transform, enlarged


@dataclass(frozen=True, kw_only=True)
class CellPlace:
    """The position of a grid of cells, with one cell per patch. The module `transforms.py` defines transforms.

    The transforms place each cell on the square of its patch's pixels. But the stem's convolutions centre a cell on the
    upper left pixel of this square. So the map appears half a cell too far to the right and down. The functions
    in `draw/cells.py` correct this shift for pictures. The transforms do not correct it.

    Attributes:
        source: name of the image.
        to_pixels: transform from column and row of a cell to pixels of the file's largest level.
        to_map: transform from column and row of a cell to coordinates on the ground; None if the image is not
            georeferenced.
        crs: coordinate system on the ground as WKT; None if the file does not contain a coordinate system.
    """

    source: str
    to_pixels: Transform
    to_map: Transform | None = None
    crs: str | None = None

    @classmethod
    def of(cls, info: RowsInfo, patch_size: int) -> "CellPlace":
        """Returns the position of the cells of an image, from the image's `info` and the side of a patch in pixels."""
        place, transform = info.metadata.get("place", IDENTITY), info.metadata.get("transform")
        return cls(
            source=info.name,
            to_pixels=enlarged(place, patch_size, patch_size),
            to_map=None if transform is None else enlarged(transform, patch_size, patch_size),
            crs=info.metadata.get("crs"),
        )

    def described(self) -> dict[str, Any]:
        """Returns the attributes as JSON values, with the keys source, cell_to_pixel, cell_to_map and crs."""
        found: dict[str, Any] = {"source": self.source, "cell_to_pixel": list(self.to_pixels)}
        found["cell_to_map"] = None if self.to_map is None else list(self.to_map)
        return found | {"crs": self.crs}
