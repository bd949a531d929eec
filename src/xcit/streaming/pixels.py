"""Rows of pixels of any type as a model's input, read ahead by a thread."""

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

_LUMA = (19595, 38470, 7471)  # of 65536: the shares of red, green and blue in grey, as Pillow has them


def check_channels(source: ImageRows, spec: Preprocessing) -> None:
    """Refuses an image whose channels can't be made those of the model.

    Raises:
        XCiTError: naming both.
    """
    ours, theirs = len(spec.mean), source.channels
    if len(spec.std) != ours:
        raise XCiTError(f"preprocessing has {ours} means and {len(spec.std)} std: one of each is needed a channel")
    if theirs != ours and (theirs, ours) not in ((1, 3), (3, 1)):
        raise XCiTError(f"{rows_info(source).name}: has {theirs} channels, the model takes {ours}: choose bands")


def image_shape(source: ImageRows) -> ImageShape:
    """What a plan has to know of an image; reads its first row."""
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
    """Stripes (1, channels, r, w) of an image, normalised, from the top to the bottom.

    The numbers are those that `images.preprocess.normalize` gives the whole image. Pixels that a mask leaves out are 0,
    as what lies beyond the edge of the image is.

    Args:
        source: of the rows.
        spec: whose mean and standard deviation are taken.
        read_rows: rows that are read at once, while those before them are computed on.
        rows_at_once: rows of a stripe.
        device: of the stripes.
        dtype: of the stripes.

    Raises:
        XCiTError: if rows can't be read, or have numbers that are not finite and that no mask leaves out.
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
    """Rows, and which of their pixels count."""
    read_mask = mask_reader(source)
    return source.read(start, end), None if read_mask is None else read_mask(start, end)


def checked(pixels: Pixels, source: ImageRows, end: int) -> Pixels:
    """What a source has read, if it is what was asked of it, rows up to `end`.

    Raises:
        XCiTError: if its shape is another.
    """
    if pixels.ndim != 3 or pixels.shape[1:] != (source.width, source.channels) or not 0 < len(pixels) <= end:
        raise XCiTError(
            f"{rows_info(source).name}: a read of rows to {end} gave shape {pixels.shape}, not (rows, {source.width}, "
            f"{source.channels})"
        )
    return pixels


def _numbers(pixels: Pixels, channels: int) -> Tensor:
    """Pixels (r, w, C) as float32 (r, w, channels): integers as shares of their type's largest, floats as they are."""
    if channels == 1 and pixels.shape[2] == 3:
        pixels = _grey(pixels)
    # uint16 is read by few of torch's operators; a copy, for a source may give a view.
    numbers = torch.from_numpy(pixels.astype(np.float32)) if pixels.dtype != np.uint8 else _from_bytes(pixels)
    if pixels.dtype.kind == "u":
        numbers.div_(float(np.iinfo(pixels.dtype).max))
    return numbers.expand(-1, -1, channels).contiguous() if numbers.shape[2] != channels else numbers


def _from_bytes(pixels: Pixels) -> Tensor:
    return torch.from_numpy(np.require(pixels, requirements=["C", "W"])).to(torch.float32)


def _grey(pixels: Pixels) -> Pixels:
    """Red, green and blue (r, w, 3) as grey (r, w, 1) of the same type, rounded as Pillow does."""
    if pixels.dtype.kind == "u":
        weighted = pixels.astype(np.uint64) @ np.array(_LUMA, np.uint64)[:, None]
        return ((weighted + 32768) >> 16).astype(pixels.dtype)
    return (pixels.astype(np.float32) @ np.array(_LUMA, np.float32)[:, None]) / 65536
