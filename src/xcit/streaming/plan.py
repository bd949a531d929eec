"""Plans how a model processes an image in bounded memory: rows per stripe, and where the tokens are stored.

`Costs` estimates the memory of a run. Tests compare the estimates with measurements. The command `xcit max-size` prints
the largest images that fit according to the estimates.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch

from xcit.errors import XCiTError
from xcit.models.fused import NUMBERS_AT_ONCE
from xcit.models.stripes import ROWS_HELD
from xcit.models.xcit import FusedXCiT
from xcit.streaming.budget import format_size

Place = Literal["device", "host", "scratch"]

OVERHEAD = 48 * 2**20
"""Number of bytes that a run needs at any image size, for loaded code, threads, and memory fragmentation."""

MAPS_AT_ONCE = 7
"""Number of tensors of a stripe's size that a block needs at once: input, output, norms, and LPI's maps."""

DEVICE_SHARE = 0.8
"""Share of a GPU's free memory that tokens and stripes may use, 0..1."""


@dataclass(frozen=True, kw_only=True)
class ImageShape:
    """The properties of an image on which a plan depends.

    Attributes:
        height: number of rows of pixels.
        width: number of pixels per row.
        pixel_bytes: number of bytes per pixel that the source returns, for all channels and the mask together.
        read_rows: number of rows that the source decodes together. Reading all of them costs as much as reading one.
        buffer_bytes: size of the source's buffers in bytes.
    """

    height: int
    width: int
    pixel_bytes: int = 3
    read_rows: int = 1
    buffer_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan of a run: where the tokens are stored, and how many rows are processed at once.

    Attributes:
        place: where the tokens are stored: "device" is the model's device, "host" is host memory for a model on another
            device, and "scratch" is scratch files.
        grid: height H and width W of the token grid.
        rows_at_once: number of token rows in a stripe.
        pixel_rows_at_once: number of pixel rows that the stem processes at once.
        read_rows: number of pixel rows that are read at once.
        peak_bytes: estimated peak of the host memory, in addition to the loaded model.
        scratch_bytes: size of the two scratch files together; 0 if `place` is not "scratch".
    """

    place: Place
    grid: tuple[int, int]
    rows_at_once: int
    pixel_rows_at_once: int
    read_rows: int
    peak_bytes: int
    scratch_bytes: int


def make_plan(
    model: FusedXCiT,
    image: ImageShape,
    bound: int,
    *,
    token_dtype: torch.dtype,
    output_bytes: int = 0,
) -> Plan:
    """Chooses the fastest storage for the tokens and the largest useful stripes within a memory limit.

    Args:
        model: the model, on its device and in its dtype.
        image: the properties of the image.
        bound: limit of the host memory in addition to the loaded model, in bytes.
        token_dtype: dtype in which the tokens are stored between blocks.
        output_bytes: size in bytes of the outputs that are kept in memory.

    Raises:
        XCiTError: if the limit is too small. The message contains the smallest possible limit.
    """
    costs = Costs(model, image, token_dtype)
    places: tuple[Place, ...] = ("scratch",)
    if costs.token_bytes + output_bytes < bound:
        places = ("device", "scratch") if costs.device.type == "cpu" else ("host", "scratch")
    if costs.device.type == "cuda" and costs.fits_device():
        places = ("device",)
    best: Plan | None = None
    for place in places:
        for size in costs.sizes():
            plan = costs.plan(place, size, output_bytes)
            if plan.peak_bytes <= bound:
                return plan
            best = plan if best is None or plan.peak_bytes < best.peak_bytes else best
    assert best is not None
    raise XCiTError(
        f"{image.width} x {image.height} pixels can't be processed in {format_size(bound)} of memory: at least "
        f"{format_size(best.peak_bytes)} of memory and {format_size(best.scratch_bytes)} of scratch files are needed"
    )


class Costs:
    """Estimates the memory that a run on one image needs.

    Attributes:
        grid: height H and width W of the token grid.
        token_bytes: size of all tokens in bytes.
        device: the device on which the model computes.
    """

    def __init__(self, model: FusedXCiT, image: ImageShape, token_dtype: torch.dtype) -> None:
        config = model.config
        parameter = next(model.parameters())
        self.device, self._number = parameter.device, parameter.dtype.itemsize
        self._image, self._config, self._stored = image, config, token_dtype
        self.grid = model.embedding.grid(image.height, image.width)
        self._dim = config.embed_dim
        self.token_bytes = self.grid[0] * self.grid[1] * self._dim * token_dtype.itemsize
        self._at_once = max(1, NUMBERS_AT_ONCE.get(self.device.type, NUMBERS_AT_ONCE["cuda"]) // self._dim)
        self._stem_numbers, _ = model.embedding.numbers_a_pixel()

    @property
    def most_rows(self) -> tuple[int, int]:
        """Returns the number of token rows and the number of pixel rows above which larger stripes are not faster."""
        rows = max(1, min(self._at_once // self.grid[1], self.grid[0]))
        pixel_rows = int(self._at_once * self._dim / (self._image.width * self._stem_numbers))
        return rows, max(1, pixel_rows)

    def sizes(self) -> list[float]:
        """Returns the sizes of stripes to try, as fractions of `most_rows`: 1, 1/2, 1/4 and so on, down to one row."""
        return [2.0**-power for power in range(max(self.most_rows).bit_length() + 1)]

    def plan(self, place: Place, size: float, output_bytes: int) -> Plan:
        """Returns the plan for given storage and stripes, without a check of the memory limit.

        Args:
            place: where the tokens are stored (see `Plan`).
            size: size of the stripes as a fraction of `most_rows`.
            output_bytes: size in bytes of the outputs that are kept in memory.
        """
        image, width = self._image, self.grid[1]
        most_rows, most_pixel_rows = self.most_rows
        rows = max(1, int(most_rows * size))
        pixel_rows = max(1, min(int(most_pixel_rows * size), image.height))
        read_rows = max(1, min(int(max(image.read_rows, pixel_rows) * size), image.height))
        pixel_rows = min(pixel_rows, read_rows)
        stripe = (rows + ROWS_HELD) * width * self._dim
        block = MAPS_AT_ONCE * stripe + min(self._at_once, rows * width) * (self._config.hidden_dim + 3 * self._dim)
        # The pixels exist as float32, and as the input of the first convolution. The stem's largest map exists three
        # times: as the output of its convolution, after GELU, and as the input of the next convolution.
        a_pixel = self._config.in_channels + self._stem_numbers
        embed = int(3 * a_pixel * (pixel_rows + 2) * image.width)
        computing = self._number * (max(block, embed) if self.device.type == "cpu" else 0)
        peak = OVERHEAD + computing + output_bytes + image.buffer_bytes
        peak += 2 * read_rows * image.width * image.pixel_bytes
        scratch = 0
        if place == "scratch":
            peak += 4 * rows * width * self._dim * self._stored.itemsize
            scratch = 2 * self.token_bytes
        elif place == "host" or self.device.type == "cpu":
            peak += self.token_bytes
        return Plan(
            place=place,
            grid=self.grid,
            rows_at_once=rows,
            pixel_rows_at_once=pixel_rows,
            read_rows=read_rows,
            peak_bytes=peak,
            scratch_bytes=scratch,
        )

    def fits_device(self) -> bool:
        """Returns whether the tokens and the largest stripes fit in the allowed share of the GPU's free memory."""
        free, _ = torch.cuda.mem_get_info(self.device)
        stripe = self.most_rows[0] * self.grid[1] * self._dim * self._number * (MAPS_AT_ONCE + self._config.mlp_ratio)
        return self.token_bytes + stripe < DEVICE_SHARE * free


def largest_square(model: FusedXCiT, bound: int, *, place: Place) -> tuple[int, Plan]:
    """Finds the largest square image that can be processed within a memory limit.

    Args:
        model: the model, on its device and in its dtype.
        bound: limit of the host memory in addition to the loaded model, in bytes.
        place: where the tokens are stored (see `Plan`).

    Returns:
        The side of the image in pixels, a multiple of the patch size, and the plan for this image.

    Raises:
        XCiTError: if the limit is too small for any image.
    """

    def plan_of(side: int) -> Plan | None:
        costs = Costs(model, ImageShape(height=side, width=side), next(model.parameters()).dtype)
        plans = (costs.plan(place, size, 0) for size in costs.sizes())
        return next((plan for plan in plans if plan.peak_bytes <= bound), None)

    patch = model.config.patch_size
    # Sides in patches. The next loop ends when an image of side `high` needs more memory than the limit.
    low, high = 0, 1
    while plan_of(high * patch) is not None:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if plan_of(middle * patch) is not None else (low, middle)
    found = plan_of(low * patch) if low else None
    if found is None:
        raise XCiTError(f"no image can be processed in {format_size(bound)} of memory")
    return low * patch, replace(found, place=place)
