"""Reads an image from any source as upright 8-bit RGB. If an image can't be read, the error says why."""

import contextlib
import io
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError

from xcit.errors import XCiTError
from xcit.images.eight_bits import integers_to_8_bits, to_8_bits
from xcit.images.formats import looks_like, opened_formats
from xcit.images.sources import bytes_elsewhere, bytes_of, printable, source_name
from xcit.images.stored_numbers import stored_numbers

ImageSource = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | np.ndarray | torch.Tensor

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# PNG stores its transparent colour in the file's bit depth. Pillow scales the pixels to 8 bits, but not this colour.
# These factors scale the colour in the same way.
_PNG_TRANSPARENCY_SCALE = {"L;2": 85.0, "L;4": 17.0, "RGB;16B": 1 / 256}

# Formats for which Pillow may warn about unusual metadata when it opens a file, but never when it reads the pixels.
_SILENT_FORMATS = frozenset(("JPEG", "PNG", "WEBP"))

_warnings_lock = threading.Lock()
if hasattr(os, "register_at_fork"):
    # A forked process contains only the thread that called fork. If another thread held the lock at that moment, the
    # lock would stay locked in the new process, and warnings would stay silenced. So a fork waits until the lock is
    # free.
    os.register_at_fork(
        before=_warnings_lock.acquire,
        after_in_parent=_warnings_lock.release,
        after_in_child=_warnings_lock.release,
    )


def read_image(source: ImageSource, *, ignore_exif: bool = False) -> Image.Image:
    """Reads an image as 8-bit RGB: upright by its EXIF orientation, with transparent parts over white.

    If a file contains several frames, the first frame is read.

    Args:
        source: one of the following:

            - a path, a URL, or "-" for standard input,
            - the bytes of an image file,
            - a file that is open in binary mode (it is read from its current position),
            - a PIL image of any mode (it is not changed),
            - an array (H, W) or (H, W, C), or a tensor (H, W) or (C, H, W). C is 1 (grey), 3 (RGB) or 4 (RGB and
              alpha). The type is uint8, uint16 (scaled to 8 bits), bool, or floating-point in 0..1.
        ignore_exif: if true, the EXIF orientation is ignored.

    Returns:
        A new image of mode "RGB", without metadata. Its pixels are in memory.

    Raises:
        XCiTError: "<path>: <reason>" if the file is missing, can't be read, is not an image, is truncated or damaged,
            or has more than twice `PIL.Image.MAX_IMAGE_PIXELS` pixels (perhaps a decompression bomb); or if the shape,
            type or range of an array or tensor is not supported.
    """
    try:
        if isinstance(source, Image.Image):
            with _pillow_errors():
                return _to_rgb(source, ignore_exif)
        if isinstance(source, torch.Tensor):
            return _from_tensor(source)
        if isinstance(source, np.ndarray):
            return _from_array(source)
        if isinstance(source, bytes | bytearray | memoryview):
            return _from_bytes(bytes(source), ignore_exif)
        if isinstance(source, str | os.PathLike):
            data = bytes_elsewhere(source)
            if data is not None:
                return _from_bytes(data, ignore_exif)
            with _open_file(Path(source)) as file, _pillow_errors():
                return _to_rgb(_identify(file), ignore_exif)
        if hasattr(source, "read"):
            return _from_bytes(bytes_of(source), ignore_exif)
    except XCiTError as error:
        raise XCiTError(f"{_name(source)}: {error}") from error
    raise XCiTError(
        "an image must be a path, a URL, bytes, an open file, a PIL image, a NumPy array or a tensor, not "
        f"{type(source).__name__}"
    )


def _from_bytes(data: bytes, ignore_exif: bool) -> Image.Image:
    if not data:
        raise XCiTError("the file is empty (0 bytes)")
    with _pillow_errors():
        return _to_rgb(_identify(io.BytesIO(data)), ignore_exif)


def read_encoded_image(data: bytes, name: str, *, ignore_exif: bool = False) -> Image.Image:
    """Reads an image from the bytes of a file, like `read_image`. Error messages begin with `name`."""
    try:
        return _from_bytes(data, ignore_exif)
    except XCiTError as error:
        raise XCiTError(f"{name}: {error}") from error


def image_size(path: str | os.PathLike[str], *, ignore_exif: bool = False) -> tuple[int, int]:
    """Returns the width and height of the image that `read_image` would return, without reading the pixels.

    Raises:
        XCiTError: "<path>: <reason>" if the file can't be read as an image.
    """
    try:
        with _open_file(Path(path)) as file, _pillow_errors():
            image = _identify(file)
            width, height = image.size
            is_turned = not ignore_exif and _orientation(image) in (5, 6, 7, 8)
    except XCiTError as error:
        raise XCiTError(f"{_name(path)}: {error}") from error
    return (height, width) if is_turned else (width, height)


def read_labels(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads a label image: for each pixel, the integer that the file stores, not the grey or colour that viewers show.

    Returns:
        uint8 (h, w).

    Raises:
        XCiTError: "<path>: <reason>" if the file can't be read as an image, contains colours instead of numbers,
            contains numbers outside 0..255, or is a JPEG.
    """
    try:
        with _open_file(Path(path)) as file, _pillow_errors():
            values = stored_numbers(_identify(file), load_pixels)
    except XCiTError as error:
        raise XCiTError(f"{_name(path)}: {error}") from error
    if values.size and not 0 <= int(values.min()) <= int(values.max()) <= 255:
        raise XCiTError(f"{_name(path)}: labels are {values.min()} to {values.max()}, but must be within 0..255")
    return values.astype(np.uint8)


def _open_file(path: Path) -> BinaryIO:
    """Opens a file, after a check that it is a regular file and not empty. Error messages do not contain the path."""
    if "\0" in str(path):
        raise XCiTError("no file can have a zero byte in its name")
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise XCiTError("is a folder, not an image file")
        if not stat.S_ISREG(status.st_mode):  # opening a pipe could block forever
            raise XCiTError("is not a regular file")
        if status.st_size == 0:
            raise XCiTError("the file is empty (0 bytes)")
        return path.open("rb")
    except FileNotFoundError as error:
        raise XCiTError("no such file") from error
    except PermissionError as error:
        raise XCiTError("no permission to read it") from error
    except OSError as error:
        raise XCiTError(f"cannot be opened ({error.strerror})") from error


def _identify(file: BinaryIO) -> Image.Image:
    """Opens an image with Pillow. The pixels are not read yet."""
    try:
        with _without_warnings():
            image = Image.open(file, formats=opened_formats())
    except UnidentifiedImageError as error:
        file.seek(0)
        raise XCiTError(f"not an image that can be read{looks_like(file.read(512))}") from error
    if image.format == "PNG" and image.tile and "transparency" in image.info:
        scale = _PNG_TRANSPARENCY_SCALE.get(str(image.tile[0][3]))
        colour = image.info["transparency"]
        if scale and isinstance(colour, tuple):
            image.info["transparency"] = tuple(int(value * scale) for value in colour)
        elif scale:
            image.info["transparency"] = int(colour * scale)
    return image


@contextlib.contextmanager
def _pillow_errors() -> Iterator[None]:
    """Converts errors of any type to an `XCiTError` with the reason. Pillow's decoders raise errors of many types."""
    try:
        yield
    except XCiTError:
        raise
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise XCiTError(f"more than {limit:,} pixels, perhaps a decompression bomb") from error
    except MemoryError as error:
        raise XCiTError("too large for the memory of this machine") from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise XCiTError(f"a truncated, damaged or unsupported image ({reason})") from error


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Silences Pillow's warnings about unusual metadata and about large images (above `Image.MAX_IMAGE_PIXELS`).

    All threads share Python's warning filters. So only one thread at a time may change them. Otherwise, two threads
    could restore the filters in the wrong order.
    """
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def load_pixels(image: Image.Image) -> None:
    """Reads the pixels of an image. If Pillow may give a warning, only one thread at a time reads pixels."""
    is_large = image.width * image.height > (Image.MAX_IMAGE_PIXELS or float("inf"))
    is_silent = not is_large and (image.format is None or image.format in _SILENT_FORMATS)
    with contextlib.nullcontext() if is_silent else _without_warnings():
        image.load()


def _to_rgb(image: Image.Image, ignore_exif: bool = False) -> Image.Image:
    if 0 in image.size:
        raise XCiTError(f"has no pixels ({image.width} x {image.height})")
    load_pixels(image)
    turn = None if ignore_exif else _UPRIGHT.get(_orientation(image))
    if image.mode.startswith("I"):
        rgb = Image.fromarray(integers_to_8_bits(image)).convert("RGB")
    elif image.mode == "F":
        rgb = Image.fromarray(to_8_bits(np.asarray(image))).convert("RGB")
    elif image.has_transparency_data:
        # Pillow can't convert "La" to "RGBA" directly.
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        rgb = Image.alpha_composite(Image.new("RGBA", image.size, "white"), rgba).convert("RGB")
    else:
        rgb = image.convert("RGB")  # always a copy
    rgb.info = {}  # The result is upright and opaque, so the metadata of the source no longer fits.
    return rgb if turn is None else rgb.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation, or 1 (upright) if the image has no EXIF orientation or its EXIF data is damaged."""
    with _without_warnings(), contextlib.suppress(Exception):
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    return 1


def _from_tensor(tensor: torch.Tensor) -> Image.Image:
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        tensor = tensor.float()  # NumPy has no bfloat16
    if tensor.ndim == 3:
        _check_shape(tuple(tensor.shape), tensor.shape[0], "(C, H, W)")
        tensor = tensor.permute(1, 2, 0)
    else:
        _check_shape(tuple(tensor.shape), 1, "(C, H, W)")
    return _from_pixels(tensor.numpy())


def _from_array(array: np.ndarray) -> Image.Image:
    _check_shape(array.shape, array.shape[2] if array.ndim == 3 else 1, "(H, W, C)")
    return _from_pixels(array)


def _check_shape(shape: tuple[int, ...], num_channels: int, form: str) -> None:
    if len(shape) not in (2, 3) or num_channels not in (1, 3, 4) or 0 in shape:
        raise XCiTError(f"shape {shape}: an image must have shape (H, W), or {form} with C 1, 3 or 4")


def _from_pixels(pixels: np.ndarray) -> Image.Image:
    """Converts pixels (H, W) or (H, W, C), with C 1, 3 or 4, to an RGB image."""
    pixels = to_8_bits(pixels)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    return _to_rgb(Image.fromarray(np.ascontiguousarray(pixels)))


def _name(source: ImageSource) -> str:
    if isinstance(source, Image.Image):
        return printable(Path(getattr(source, "filename", "") or f"PIL image of mode {source.mode}"))
    if isinstance(source, torch.Tensor):
        return "image tensor"
    if isinstance(source, np.ndarray):
        return "image array"
    if isinstance(source, bytes | bytearray | memoryview):
        return "image bytes"
    if not isinstance(source, str | os.PathLike):
        name = getattr(source, "name", None)
        return printable(Path(name)) if isinstance(name, str) else "open image file"
    return source_name(source)
