"""Reads Zarr arrays and OME-Zarr pyramids a few rows at a time."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xcit.errors import XCiTError
from xcit.extras import imported
from xcit.images.array_rows import check_pixel_type
from xcit.images.kept_rows import KeptRows
from xcit.images.rows import Mask, Pixels, RowsInfo
from xcit.images.transforms import level_place

_AXES = {"y": "y", "x": "x", "c": "c", "channel": "c", "channels": "c", "band": "c", "bands": "c"}


class ZarrRows:
    """A row reader for a Zarr array, or for one level of the first image of an OME-Zarr file.

    The array has the shape (H, W) or (H, W, C), or named axes in any order. Named axes other than y, x and c (channel)
    must have length 1.

    Raises:
        XCiTError: if the file can't be read, the array is not an image, or zarr is not installed.
    """

    def __init__(self, path: Path, level: int = 0, *, ranged: bool = False) -> None:
        zarr = imported("zarr", f"{path}: Zarr")
        self._path = path
        try:
            node: Any = zarr.open(str(path), mode="r")
            multiscales = _multiscales(node.attrs)
            axes = _axes(multiscales)
            datasets = [one["path"] for one in multiscales["datasets"]] if multiscales else []
            arrays = [node[name] for name in datasets] if datasets else [node]
        except Exception as error:  # zarr's errors have no common base class
            raise XCiTError(f"{path}: zarr can't open it ({error})") from error
        if not 0 <= level < len(arrays):
            raise XCiTError(f"{path}: no level {level}: the file has {len(arrays)} levels, counted from 0")
        self._array = arrays[level]
        if not isinstance(self._array, zarr.Array):
            raise XCiTError(f"{path}: a Zarr group that is not an OME-Zarr image: give the path of one of its arrays")
        shape = tuple(self._array.shape)
        self._axes = axes or _named(getattr(self._array.metadata, "dimension_names", None)) or _unnamed(shape, path)
        sizes = dict(zip(self._axes, shape, strict=True))
        if not {"y", "x"} <= sizes.keys() or any(size != 1 for name, size in sizes.items() if name not in "yxc"):
            raise XCiTError(f"{path}: shape {shape} with axes {self._axes}: the file must contain one image")
        self.height, self.width, self.channels = sizes["y"], sizes["x"], sizes.get("c", 1)
        self._dtype = np.dtype(self._array.dtype)
        check_pixel_type(self._dtype, str(path), ranged=ranged)
        row = self._axes.index("y")
        tile_rows = min(self._array.chunks[row], self.height)
        self._kept = KeptRows(self.height, tile_rows, self._decode)
        levels = tuple((one.shape[row], one.shape[self._axes.index("x")]) for one in arrays)
        self.info = RowsInfo(
            name=str(path),
            levels=levels if len(levels) > 1 else (),
            level=level,
            rows_at_once=tile_rows,
            buffer_bytes=2 * tile_rows * self.width * self.channels * self._dtype.itemsize,
            metadata={"place": level_place(levels[0], levels[level])},
        )

    def read(self, start: int, end: int) -> Pixels:
        """Returns rows start:end, as a view of decoded chunks or in a new array."""
        return self._kept.read(start, end)[0]

    def close(self) -> None:
        """Does nothing, because no file stays open."""

    def _decode(self, start: int, end: int) -> tuple[Pixels, Mask | None]:
        index = tuple({"y": slice(start, end), "x": slice(None), "c": slice(None)}.get(name, 0) for name in self._axes)
        try:
            pixels = np.asarray(self._array[index])
        except Exception as error:  # each codec has its own errors
            raise XCiTError(f"{self._path}: damaged in rows {start} to {end - 1} ({error})") from error
        kept = [name for name in self._axes if name in "yxc"]
        pixels = pixels if "c" in kept else pixels[..., None]
        return pixels.transpose([[*kept, "c"].index(name) for name in "yxc"]), None


def _multiscales(attributes: Mapping[str, Any]) -> dict[str, Any] | None:
    found = attributes.get("ome", attributes).get("multiscales")
    return found[0] if found else None


def _axes(multiscales: dict[str, Any] | None) -> tuple[str, ...] | None:
    axes = multiscales.get("axes") if multiscales else None
    return _named([axis if isinstance(axis, str) else axis["name"] for axis in axes]) if axes else None


def _named(names: list[str | None] | None) -> tuple[str, ...] | None:
    if not names or None in names:
        return None
    return tuple(_AXES.get(str(name).lower(), str(name)) for name in names)


def _unnamed(shape: tuple[int, ...], path: Path) -> tuple[str, ...]:
    if len(shape) not in (2, 3):
        raise XCiTError(f"{path}: shape {shape}: an image must have shape (H, W) or (H, W, C), or named axes")
    return ("y", "x", "c")[: len(shape)]
