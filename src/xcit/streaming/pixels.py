"""Converts rows of pixels of any type to a model's input; a thread reads ahead."""

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

_LUMA = (19595, 38470, 7471)  # weights of red, green and blue in Pillow's grey, divided by 65536


def check_channels(source: ImageRows, spec: Preprocessing) -> None:
    """Checks that an image's channels can be converted to those of the model.

    Raises:
        XCiTError: if the channels can't be converted; the message names both numbers.
    """
    ours, theirs = len(spec.mean), source.channels
    if len(spec.std) != ours:
        raise XCiTError(f"preprocessing has {ours} means and {len(spec.std)} std: one of each is needed per channel")
    if theirs != ours and (theirs, ours) not in ((1, 3), (3, 1)):
        raise XCiTError(f"{rows_info(source).name}: has {theirs} channels, the model takes {ours}: choose bands")


def image_shape(source: ImageRows) -> ImageShape:
    """Returns the properties of an image on which a plan depends. Reads the first row of the image."""
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
    """Yields normalised stripes (1, channels, r, w) of an image, from top to bottom.

    The values are those that `images.preprocess.normalize` computes for the whole image. Pixels that a mask leaves out
    are 0, like the padding beyond the edge of the image.

    Args:
        source: the source of the rows.
        spec: the preprocessing, of which mean and standard deviation are used.
        read_rows: number of rows to read at once, while the rows before them are processed.
        rows_at_once: number of rows in a stripe.
        device: device of the stripes.
        dtype: dtype of the stripes.

    Raises:
        XCiTError: if rows can't be read, or contain values that are not finite and that no mask leaves out.
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
                            f"{rows_info(source).name}: numbers that are not finite in rows {at + first} to "
                            f"{at + last - 1}: leave them out by a mask"
                        )
                    yield numbers.to(dtype)[None].permute(0, 3, 1, 2)
                at += len(pixels)
                del pixels
            pending = coming


def _read(source: ImageRows, start: int, end: int) -> tuple[Pixels, Mask | None]:
    """Returns rows and the mask of the pixels that count, or None if all count."""
    read_mask = mask_reader(source)
    return source.read(start, end), None if read_mask is None else read_mask(start, end)


def checked(pixels: Pixels, source: ImageRows, end: int) -> Pixels:
    """Returns rows that a source has read, after a check of their shape; they must not reach beyond row `end`.

    Raises:
        XCiTError: if the shape is wrong.
    """
    if pixels.ndim != 3 or pixels.shape[1:] != (source.width, source.channels) or not 0 < len(pixels) <= end:
        raise XCiTError(
            f"{rows_info(source).name}: a read of rows to {end} gave shape {pixels.shape}, not (rows, {source.width}, "
            f"{source.channels})"
        )
    return pixels


def _numbers(pixels: Pixels, channels: int) -> Tensor:
    """Converts pixels (r, w, C) to float32 (r, w, channels).

    Integers are divided by the largest value of their type.
    """
    if channels == 1 and pixels.shape[2] == 3:
        pixels = _grey(pixels)
    # Few operators of torch support uint16. The copy is needed, because a source may return a view.
    numbers = torch.from_numpy(pixels.astype(np.float32)) if pixels.dtype != np.uint8 else _from_bytes(pixels)
    if pixels.dtype.kind == "u":
        numbers.div_(float(np.iinfo(pixels.dtype).max))
    return numbers.expand(-1, -1, channels).contiguous() if numbers.shape[2] != channels else numbers


def _from_bytes(pixels: Pixels) -> Tensor:
    return torch.from_numpy(np.require(pixels, requirements=["C", "W"])).to(torch.float32)


def _grey(pixels: Pixels) -> Pixels:
    """Converts RGB (r, w, 3) to grey (r, w, 1) of the same type, rounded as in Pillow."""
    if pixels.dtype.kind == "u":
        weighted = pixels.astype(np.uint64) @ np.array(_LUMA, np.uint64)[:, None]
        return ((weighted + 32768) >> 16).astype(pixels.dtype)
    return (pixels.astype(np.float32) @ np.array(_LUMA, np.float32)[:, None]) / 65536
