"""Runs a model on images that are larger than memory. Up to rounding, the results equal those of one forward pass.

A stripe is a few rows of the image. In XCiT, a stripe depends on the other stripes only through D x D sums over all
tokens, where D is the width of a token, and through the neighbouring rows (the halo). So the image is processed in
stripes, with one pass over all tokens per block. Between two blocks, the tokens are stored in memory or on disk. The
source can be any object with `height`, `width`, `channels` and `read(start, end)`:

    from xcit.streaming import Wanted, encode

    encoding = encode(model, source, Wanted(class_tokens=frozenset({13})), memory="4GB")
    print(encoding.taken.class_tokens[13], encoding.report.line())
"""

from xcit.images.open_rows import open_rows
from xcit.images.rows import ImageRows, RowsInfo
from xcit.images.selection import Selection
from xcit.streaming.budget import Budget, Memory, as_budget, format_size
from xcit.streaming.encode import Encoding, StreamProgress, encode
from xcit.streaming.outputs import ArrayMap, NpyMap, Taken, TokenMap, Wanted, ZarrMap
from xcit.streaming.plan import ImageShape, Place, Plan, largest_square, make_plan
from xcit.streaming.report import Report
from xcit.streaming.tapped import HeadNeeds, TappedRun, tapped

__all__ = [
    "ArrayMap",
    "Budget",
    "Encoding",
    "HeadNeeds",
    "ImageRows",
    "ImageShape",
    "Memory",
    "NpyMap",
    "Place",
    "Plan",
    "Report",
    "RowsInfo",
    "Selection",
    "StreamProgress",
    "Taken",
    "TappedRun",
    "TokenMap",
    "Wanted",
    "ZarrMap",
    "as_budget",
    "encode",
    "format_size",
    "largest_square",
    "make_plan",
    "open_rows",
    "tapped",
]
