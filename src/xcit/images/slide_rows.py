"""Reads slides a few rows at a time through OpenSlide, for formats that tifffile can't read."""

from pathlib import Path
from typing import Any

import numpy as np

from xcit.errors import XCiTError
from xcit.extras import imported
from xcit.images.array_rows import file_identity
from xcit.images.kept_rows import KeptRows
from xcit.images.rows import Mask, Pixels, RowsInfo
from xcit.images.transforms import level_place

_TILE_ROWS = 256
"""Height of a row of tiles in pixels that is assumed if the file does not contain the height of its tiles."""

_COLUMNS_AT_ONCE = 2048


class SlideRows:
    """A row reader for one level of a slide. The pixels are 8-bit RGB.

    Areas that were not scanned get the background colour that the slide defines, as in viewers.

    Raises:
        XCiTError: if the slide can't be read, or OpenSlide is not installed.
    """

    channels = 3

    def __init__(self, path: Path, level: int = 0) -> None:
        openslide = imported("openslide", f"{path}: a slide of this format")
        identity = file_identity(path)
        try:
            self._slide: Any = openslide.OpenSlide(path)
        except openslide.OpenSlideError as error:
            raise XCiTError(f"{path}: OpenSlide can't open it ({error})") from error
        sizes = tuple((height, width) for width, height in self._slide.level_dimensions)
        if not 0 <= level < len(sizes):
            self.close()
            raise XCiTError(f"{path}: no level {level}: the file has {len(sizes)} levels, counted from 0")
        self._path, self._level, self._downsample = path, level, self._slide.level_downsamples[level]
        self.height, self.width = sizes[level]
        properties = self._slide.properties
        background = properties.get("openslide.background-color", "FFFFFF")
        self._background = np.frombuffer(bytes.fromhex(background), np.uint8).astype(np.uint16)
        tile_rows = int(properties.get(f"openslide.level[{level}].tile-height", _TILE_ROWS))
        tile_rows = min(max(1, tile_rows), _TILE_ROWS * 4, self.height)
        self._kept = KeptRows(self.height, tile_rows, self._decode)
        metadata: dict[str, Any] = {"place": level_place(sizes[0], sizes[level])}
        if "openslide.mpp-y" in properties:
            metadata["mpp"] = float(properties["openslide.mpp-y"])
        self.info = RowsInfo(
            name=str(path),
            identity=f"{identity} level {level}",
            levels=sizes,
            level=level,
            rows_at_once=tile_rows,
            buffer_bytes=tile_rows * (3 * self.width + 12 * min(self.width, _COLUMNS_AT_ONCE)),
            metadata=metadata,
        )

    def read(self, start: int, end: int) -> Pixels:
        """Returns rows start:end, as a view of decoded tiles or in a new array."""
        return self._kept.read(start, end)[0]

    def close(self) -> None:
        """Closes the file."""
        self._slide.close()

    def _decode(self, start: int, end: int) -> tuple[Pixels, Mask | None]:
        import openslide

        pixels = np.empty((end - start, self.width, 3), np.uint8)
        top = round(start * self._downsample)
        for left in range(0, self.width, _COLUMNS_AT_ONCE):
            right = min(left + _COLUMNS_AT_ONCE, self.width)
            place = round(left * self._downsample), top
            try:
                tile = np.asarray(self._slide.read_region(place, self._level, (right - left, end - start)))
            except openslide.OpenSlideError as error:
                where = f"rows {start} to {end - 1} of {self.height}"
                raise XCiTError(f"{self._path}: truncated or damaged in {where} ({error})") from error
            pixels[:, left:right] = tile[:, :, :3]
            if (tile[:, :, 3] != 255).any():
                alpha = tile[:, :, 3:].astype(np.uint16)
                mixed = tile[:, :, :3] * alpha + self._background * (255 - alpha)
                pixels[:, left:right] = (mixed + 127) // 255
        return pixels, None
