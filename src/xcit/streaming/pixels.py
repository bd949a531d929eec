"""Converts rows of pixels to a model's input. A separate thread reads the next rows in advance."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from xcit.errors import XCiTError
from xcit.images.preprocess import Preprocessing
from xcit.images.rows import ImageRows, Mask, Pixels, mask_reader, rows_info
from xcit.models.stripes import spans
from xcit.streaming.plan import ImageShape

_LUMA = (19595, 38470, 7471)  # Pillow's weights of red, green and blue for grey, multiplied by 65536


def check_channels(source: ImageRows, spec: Preprocessing) -> None:
    """Checks that an image has the channels of the model, or can be converted from grey to RGB or from RGB to grey.

    Raises:
        XCiTError: if the channels can't be converted, or the preprocessing has different numbers of means and standard
            deviations.
    """
    ours, theirs = len(spec.mean), source.channels
    if len(spec.std) != ours:
        raise XCiTError(
            f"preprocessing has {ours} means and {len(spec.std)} standard deviations: give one of each per channel"
        )
    if theirs != ours and (theirs, ours) not in ((1, 3), (3, 1)):
        raise XCiTError(f"{rows_info(source).name}: has {theirs} channels, the model takes {ours}: choose bands")


def image_shape(source: ImageRows) -> ImageShape:
    """Reads the first row of an image, and returns the properties of the image on which the plan of a run depends."""
    info = rows_info(source)
    pixel_bytes = source.read(0, 1).dtype.itemsize * source.channels + (mask_reader(source) is not None)
    return ImageShape(
        height=source.height,
        width=source.width,
        pixel_bytes=pixel_bytes,
        read_rows=info.rows_at_once,
        buffer_bytes=info.buffer_bytes,
    )


def normalized_stripes(
    source: ImageRows,
    spec: Preprocessing,
    *,
    read_rows: int,
    rows_at_once: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Iterator[Tensor]:
    """Yields an image in normalised stripes (1, channels, r, w) of r pixel rows, from top to bottom.

    The values equal those of `images.preprocess.normalize` for the whole image. Pixels that the source's mask leaves
    out are 0, like the zero padding beyond the edge of the image.

    Args:
        source: the source of the rows.
        spec: the preprocessing, of which only mean and standard deviation are used.
        read_rows: number of rows that are read at once, while earlier rows are processed.
        rows_at_once: largest number of rows in a stripe.
        device: device of the stripes.
        dtype: dtype of the stripes.

    Raises:
        XCiTError: if rows can't be read, or if they contain values that are not finite. Pixels that the mask leaves out
            may have any values.
    """
    mean, std = (torch.tensor(values, dtype=torch.float32, device=device) for values in (spec.mean, spec.std))
    with ThreadPoolExecutor(1) as pool:
        pending, at = None, 0
        for start, end in [*spans(source.height, read_rows), (source.height, source.height)]:
            coming = pool.submit(_read, source, start, end) if start < end else None
            if pending is not None:
                pixels, mask = pending.result()
                checked(pixels, source, start)
                for first, last in spans(len(pixels), rows_at_once):
                    numbers = _numbers(pixels[first:last], len(spec.mean)).to(device).sub_(mean).div_(std)
                    if mask is not None:
                        numbers.masked_fill_(torch.from_numpy(~mask[first:last, :, None]).to(device), 0)
                    if pixels.dtype.kind == "f" and not numbers.isfinite().all():
                        raise XCiTError(
                            f"{rows_info(source).name}: rows {at + first} to {at + last - 1} contain values that are "
                            "not finite: leave these pixels out by a mask"
                        )
                    yield numbers.to(dtype)[None].permute(0, 3, 1, 2)
                at += len(pixels)
                del pixels
            pending = coming


def _read(source: ImageRows, start: int, end: int) -> tuple[Pixels, Mask | None]:
    """Reads rows start:end and their mask. The mask is None if the source has no mask."""
    read_mask = mask_reader(source)
    return source.read(start, end), None if read_mask is None else read_mask(start, end)


def checked(pixels: Pixels, source: ImageRows, end: int) -> Pixels:
    """Checks the shape of rows that a source has returned, and returns the rows.

    Args:
        pixels: the rows.
        source: the source.
        end: one past the index of the last requested row. `pixels` can't have more rows than this number.

    Raises:
        XCiTError: if the shape is wrong.
    """
    if pixels.ndim != 3 or pixels.shape[1:] != (source.width, source.channels) or not 0 < len(pixels) <= end:
        raise XCiTError(
            f"{rows_info(source).name}: `read` of rows up to {end} returned shape {pixels.shape}, not (rows, "
            f"{source.width}, {source.channels})"
        )
    return pixels


def _numbers(pixels: Pixels, channels: int) -> Tensor:
    """Converts pixels (r, w, C) to float32 (r, w, channels), and grey to RGB or RGB to grey if needed.

    Unsigned integers are divided by the largest value of their type.
    """
    if channels == 1 and pixels.shape[2] == 3:
        pixels = _grey(pixels)
    # NumPy converts the type, because few operators of torch support uint16. In all cases the pixels are copied: they
    # may be a view of the source's memory, and the caller changes the result in place.
    numbers = torch.from_numpy(pixels.astype(np.float32)) if pixels.dtype != np.uint8 else _from_bytes(pixels)
    if pixels.dtype.kind == "u":
        numbers.div_(float(np.iinfo(pixels.dtype).max))
    return numbers.expand(-1, -1, channels).contiguous() if numbers.shape[2] != channels else numbers


def _from_bytes(pixels: Pixels) -> Tensor:
    return torch.from_numpy(np.require(pixels, requirements=["C", "W"])).to(torch.float32)


def _grey(pixels: Pixels) -> Pixels:
    """Converts RGB (r, w, 3) to grey (r, w, 1). Integers keep their type and are rounded as in Pillow."""
    if pixels.dtype.kind == "u":
        weighted = pixels.astype(np.uint64) @ np.array(_LUMA, np.uint64)[:, None]
        return ((weighted + 32768) >> 16).astype(pixels.dtype)
    return (pixels.astype(np.float32) @ np.array(_LUMA, np.float32)[:, None]) / 65536
