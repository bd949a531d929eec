"""Tests that label images give the stored numbers, for all formats and bit depths that Pillow scales or inverts."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xcit.errors import XCiTError
from xcit.images.read import read_labels


def packed(values: np.ndarray, depth: int) -> list[bytes]:
    """Packs rows of samples with `depth` bits per sample, highest bit first."""
    bits = (values[:, :, None] >> np.arange(depth)[::-1]) & 1
    return [bytes(np.packbits(row.reshape(-1).astype(np.uint8))) for row in bits]


def png(values: np.ndarray, depth: int, palette: bool) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = values.shape
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 3 if palette else 0, 0, 0, 0))
    colours = chunk(b"PLTE", bytes([9, 8, 7] * 2**depth)) if palette else b""
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in packed(values, depth))))
    return b"\x89PNG\r\n\x1a\n" + head + colours + pixels + chunk(b"IEND", b"")


def tiff(values: np.ndarray, depth: int, photometric: int) -> bytes:
    data = b"".join(packed(values, depth))
    if depth == 16:
        data = values.astype("<u2").tobytes()
    height, width = values.shape
    sizes = [(256, width), (257, height), (258, depth), (259, 1), (262, photometric), (273, 8), (277, 1)]
    entries = [*sizes, (278, height), (279, len(data))]
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(entries)) + table + bytes(4)


def labels_of(depth: int) -> np.ndarray:
    return (np.arange(3 * 16).reshape(3, 16) * 5) % min(2**depth, 256)


def read(data: bytes, folder: Path) -> list[list[int]]:
    path = folder / "labels.png"
    path.write_bytes(data)
    values = read_labels(path)
    assert values.dtype == np.uint8
    found: list[list[int]] = values.tolist()
    return found


@pytest.mark.parametrize("palette", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_png_of_every_depth(tmp_path: Path, depth: int, palette: bool) -> None:
    if palette and depth == 16:
        pytest.skip("there is no such PNG")
    values = labels_of(depth)
    assert len(np.unique(values)) > 1
    assert read(png(values, depth, palette), tmp_path) == values.tolist()


@pytest.mark.parametrize("photometric", [0, 1], ids=["white is zero", "black is zero"])
@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_tiff_of_every_depth(tmp_path: Path, depth: int, photometric: int) -> None:
    values = labels_of(depth)
    assert read(tiff(values, depth, photometric), tmp_path) == values.tolist()


@pytest.mark.parametrize("depth", [1, 8])
def test_a_compressed_tiff(tmp_path: Path, depth: int) -> None:
    values, file = labels_of(depth), io.BytesIO()
    picture = Image.fromarray(values.astype(np.uint8))
    (picture if depth == 8 else picture.point(lambda value: 255 * value).convert("1")).save(
        file, "TIFF", compression="tiff_deflate"
    )
    assert read(file.getvalue(), tmp_path) == values.tolist()


@pytest.mark.parametrize("largest", [20, 150, 255, 300, 65535])
def test_a_pgm_whose_numbers_end_at_any(tmp_path: Path, largest: int) -> None:
    values = np.arange(min(largest, 255) + 1)[None]
    body = values.astype(">u2" if largest > 255 else np.uint8).tobytes()
    assert read(f"P5 {values.size} 1 {largest}\n".encode() + body, tmp_path) == values.tolist()
    plain = f"P2 {values.size} 1 {largest}\n{' '.join(map(str, values[0]))}\n"
    assert read(plain.encode(), tmp_path) == values.tolist()


def test_a_pbm_stores_one_for_black(tmp_path: Path) -> None:
    assert read(b"P4 8 1\n\xb0", tmp_path) == [[1, 0, 1, 1, 0, 0, 0, 0]]
    assert read(b"P1 2 2\n0 1 1 0\n", tmp_path) == [[0, 1], [1, 0]]


def test_numbers_above_255_are_named(tmp_path: Path) -> None:
    with pytest.raises(XCiTError, match=r"labels\.png: labels are 3 to 300, but must be within 0\.\.255"):
        read(png(np.array([[3, 300]]), 16, palette=False), tmp_path)


def test_a_jpeg_is_refused(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8)).save(file, "JPEG")
    with pytest.raises(XCiTError, match=r"labels\.png: a JPEG picture, but JPEG changes the stored numbers"):
        read(file.getvalue(), tmp_path)
    file = io.BytesIO()
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(file, "TIFF", compression="jpeg")
    with pytest.raises(XCiTError, match="a JPEG picture"):
        read(file.getvalue(), tmp_path)
