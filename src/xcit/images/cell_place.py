"""The position of a map's cells in the file of an image, and on the ground."""

from dataclasses import dataclass
from typing import Any

from xcit.images.rows import RowsInfo
from xcit.images.transforms import IDENTITY, Transform, enlarged


@dataclass(frozen=True, kw_only=True)
class CellPlace:
    """The position of a grid of cells; transforms are as in `transforms.py`.

    A cell stands for the square of its patch's pixels. But the model's view of a cell is centred on the first of these
    pixels, so the map appears half a cell too far to the right and down; `draw/cells.py` corrects this.

    Attributes:
        source: name of the image.
        to_pixels: transform from column and row of a cell to pixels of the file's largest level.
        to_map: transform to map coordinates, if the image is georeferenced.
        crs: coordinate system of the map as WKT, if the file contains it.
    """

    source: str
    to_pixels: Transform
    to_map: Transform | None = None
    crs: str | None = None

    @classmethod
    def of(cls, info: RowsInfo, patch_size: int) -> "CellPlace":
        """Returns the position of the cells of an image with this info."""
        place, transform = info.metadata.get("place", IDENTITY), info.metadata.get("transform")
        return cls(
            source=info.name,
            to_pixels=enlarged(place, patch_size, patch_size),
            to_map=None if transform is None else enlarged(transform, patch_size, patch_size),
            crs=info.metadata.get("crs"),
        )

    def described(self) -> dict[str, Any]:
        """Returns JSON values: source, cell_to_pixel, cell_to_map and crs."""
        found: dict[str, Any] = {"source": self.source, "cell_to_pixel": list(self.to_pixels)}
        found["cell_to_map"] = None if self.to_map is None else list(self.to_map)
        return found | {"crs": self.crs}
