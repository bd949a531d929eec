"""Converts a mask of pixels to a mask of tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor

from xcit.errors import XCiTError
from xcit.images.overview import box_means
from xcit.images.padded_rows import PaddedRows
from xcit.images.rows import ImageRows, mask_reader, rows_info
from xcit.models.stripes import spans

_PIXELS_AT_ONCE = 2**22


def kept_tokens(source: ImageRows, patch_size: int) -> Tensor | None:
    """Returns a mask of the tokens of an image, from the mask of its pixels.

    A token is true (not masked out) if at least half of the pixels of its patch are true. Only pixels inside the image
    are counted. The tokens in the padding of a `PaddedRows` are true. Each row of the mask of the pixels is read once.

    Returns:
        bool (H, W), the size of the token grid; None if all tokens are true.

    Raises:
        XCiTError: if no token is true, or the mask of the pixels can't be read.
    """
    if isinstance(source, PaddedRows):
        keep = kept_tokens(source.source, patch_size)
        if keep is None:
            return None
        height, width = -(-source.height // patch_size), -(-source.width // patch_size)
        return F.pad(keep, (0, width - keep.shape[1], 0, height - keep.shape[0]), value=True)
    read_mask = mask_reader(source)
    if read_mask is None:
        return None
    rows_at_once = patch_size * max(1, _PIXELS_AT_ONCE // (source.width * patch_size))
    shares = []
    for start, end in spans(source.height, rows_at_once):
        mask = read_mask(start, end)
        if mask.shape != (end - start, source.width):
            raise XCiTError(
                f"{rows_info(source).name}: `read_mask` of rows {start} to {end - 1} returned shape {mask.shape}, not "
                f"(rows, {source.width})"
            )
        shares.append(torch.from_numpy(box_means(mask[:, :, None], patch_size)[:, :, 0]))
    keep = torch.cat(shares) >= 0.5
    if not keep.any():
        raise XCiTError(f"{rows_info(source).name}: the mask or missing data leaves out all patches of the image")
    return None if keep.all() else keep
