"""Runs a detector on an image of any size in bounded memory.

The result equals the result of one forward pass, up to rounding.

The backbone processes the image in stripes (a few rows at a time). The tokens after four of its blocks are stored in
taps (see `taps.py`). One more pass over these tokens computes the feature maps of the neck (the feature pyramid), a few
rows at a time. This pass stores the maps in memory or in scratch files, and keeps the best anchors of each map. After
this pass, the box and mask heads read small parts of the maps. By default the heads process 1000 boxes and 100 masks,
so their memory does not depend on the size of the image.

The finest map is the map with the smallest stride, which is 4 pixels.
"""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xcit.errors import XCiTError
from xcit.images.padded_rows import PaddedRows
from xcit.images.preprocess import Preprocessing
from xcit.images.rows import ImageRows
from xcit.models.detection.anchors import RATIOS
from xcit.models.detection.images import PAD_TO
from xcit.models.detection.mask_rcnn import MaskRCNN
from xcit.models.detection.neck_rows import changed_module, neck_rows, proposal_outputs, proposal_rows
from xcit.models.detection.regions import window_features
from xcit.models.detection.roi_heads import Detections, num_proposals
from xcit.models.detection.rpn import Candidates, best_scores
from xcit.models.map_rows import BEHIND, ComputedRows, MapRows, TensorRows, all_maps
from xcit.models.pyramid_rows import is_plain_pyramid, pyramid_rows
from xcit.models.xcit import FusedXCiT
from xcit.streaming.budget import Memory
from xcit.streaming.encode import StreamProgress
from xcit.streaming.levels import MemoryLevel, ScratchLevel
from xcit.streaming.masks import kept_tokens
from xcit.streaming.report import Report
from xcit.streaming.state import model_digest
from xcit.streaming.stores import bit_sum
from xcit.streaming.tapped import HeadNeeds, TappedRun, tapped

_MOST_NUMBERS = 2**23
"""Largest number of values of the finest map that are computed at once. A larger number would not be faster."""

_FREED = 1.25
"""The estimated memory is multiplied by this factor, because freed memory is not reused completely."""

_COST = 2
"""Approximate duration of the neck's pass, divided by the duration of the backbone. It is used to report progress."""

_LEAST_ROWS = 8
"""Number of rows of the finest map (stride 4) that correspond to one row of the map with stride 32."""


@torch.inference_mode()
def detect_rows(
    model: MaskRCNN,
    source: ImageRows,
    *,
    min_score: float,
    max_objects: int,
    memory: Memory = None,
    progress: StreamProgress | None = None,
    after: Callable[[Detections], None] = lambda _: None,
) -> tuple[Detections, Report]:
    """Detects the objects in an image of any size at its full resolution, in bounded memory.

    The result equals the result of `MaskRCNN.detect` on the image without scaling, up to rounding. Tokens that the
    source's mask leaves out are 0 in the features. An object with its centre in one of these tokens is dropped.

    Args:
        model: the model, on its device and in its dtype. If it is not fused, a fused copy is used.
        source: the source of the rows.
        min_score: objects with lower scores are dropped.
        max_objects: largest number of objects; the objects with the highest scores are kept (see `MaskRCNN.detect`).
        memory: limit of the memory in addition to the loaded model (see `Budget`).
        progress: called after each stripe.
        after: called with the objects before the scratch files are removed. If the process is killed before this
            function returns, the run can be resumed.

    Returns:
        The objects, and the report of the run.

    Raises:
        XCiTError: if a part of the model can't be computed by rows, the memory limit is too small, the scratch disk is
            too small, or the image can't be read. The image is read during the passes; the other conditions are checked
            before the first pass.
    """
    network = model if isinstance(model.backbone.xcit, FusedXCiT) else model.fuse()
    backbone = network.backbone.xcit
    assert isinstance(backbone, FusedXCiT)
    changed = changed_module(network.fpn, network.rpn.head)
    if changed or not is_plain_pyramid(network.backbone.pyramid):
        raise XCiTError(
            f"the detector can't process an image in stripes, because {changed or 'its pyramid'} is hooked, wrapped or "
            "replaced: merge or remove the change, or scale images to a size that fits into memory"
        )
    padded = PaddedRows(source, PAD_TO)
    run = _Passes(network, padded, max_objects)
    spec = Preprocessing(mean=network.config.mean, std=network.config.std)
    how: dict[str, Any] = {"preprocessing": spec, "memory": memory, "progress": progress}
    with tapped(backbone, network.backbone.out_indices, padded, run.needs(), **how) as taps:
        found = run.detections(taps, min_score)
        after(found)
        report = taps.report()
    return found, replace(
        report,
        height=source.height,
        width=source.width,
        bytes_read=report.bytes_read + run.bytes_read,
        bytes_written=report.bytes_written + run.bytes_written,
    )


class _Passes:
    """The computations after the backbone.

    Attributes:
        bytes_read: number of bytes read from the scratch files of the neck's maps.
        bytes_written: number of bytes written to the scratch files of the neck's maps.
    """

    def __init__(self, network: MaskRCNN, source: PaddedRows, max_objects: int) -> None:
        self._network, self._source, self._max_objects = network, source, max_objects
        self.bytes_read = self.bytes_written = 0
        backbone = network.backbone.xcit
        assert isinstance(backbone, FusedXCiT)
        self._grid = backbone.embedding.grid(source.height, source.width)
        self._size = (source.source.height, source.source.width)
        shape = (*self._grid, backbone.embed_dim)
        shapes = [TensorRows(torch.empty(shape, device="meta")) for _ in network.backbone.out_indices]
        self._levels, self._hidden = self._maps(shapes)
        self._stored = sum(level.height * level.width * level.channels for level in self._levels[:4])
        self._number = next(network.parameters()).dtype.itemsize

    def needs(self) -> HeadNeeds:
        """Returns the resources that the computations after the backbone need.

        The memory is the larger of two numbers: the memory of the neck with the smallest stripes, and the memory of the
        box and mask heads. The memory of the best anchors of each map is added.
        """
        heads = self._network.roi_heads.numbers_at_once(self._max_objects)
        return HeadNeeds(
            key=f"{model_digest(self._network)} detector {self._max_objects} {self._size}",
            memory=self._number * (max(self._held(_LEAST_ROWS), heads) + self._candidates()),
            maps=self._number * self._stored,
            cost=_COST * (max(self._network.backbone.out_indices) + 2),
        )

    def detections(self, run: TappedRun, min_score: float) -> Detections:
        """Computes the objects from the tokens of the backbone."""
        network, device = self._network, self._network.device
        taps = [run.taps[block] for block in network.backbone.out_indices]
        parameter = next(network.parameters())
        how: dict[str, Any] = {"stored": parameter.dtype, "device": device, "dtype": parameter.dtype}
        stores: list[MemoryLevel | ScratchLevel] = []
        try:
            for index, level in enumerate(self._levels[:4]):
                shape = ((level.height, level.width), level.channels)
                if run.folder is None:
                    stores.append(MemoryLevel(*shape, **how))
                else:
                    stores.append(ScratchLevel(run.folder / f"level-{index}.bin", *shape, **how))
            keep = kept_tokens(self._source, network.config.backbone.patch_size)
            candidates = self._neck(run, taps, stores, None if keep is None else keep.to(device))
            proposals = network.rpn.choose(
                candidates, [level.width for level in self._levels], self._size, num_proposals(self._max_objects)
            )
            found = network.roi_heads.detect(
                lambda boxes, side: window_features(stores, boxes, side).to(device),
                proposals,
                self._size,
                torch.ones(4, device=device),
                min_score,
                self._max_objects,
            )
        finally:
            for store in stores:
                store.close()
                if isinstance(store, ScratchLevel):
                    self.bytes_read += store.bytes_read
                    self.bytes_written += store.bytes_written
        run.advance(1)
        return found if keep is None else _inside(found, keep.to(device), network.config.backbone.patch_size)

    def _maps(self, taps: Sequence[MapRows]) -> tuple[list[MapRows], list[MapRows]]:
        """Returns the five maps of the neck and, for each map, the features from which proposals are computed."""
        levels = neck_rows(self._network.fpn, pyramid_rows(self._network.backbone.pyramid, taps))
        return levels, proposal_rows(self._network.rpn.head, levels)

    def _neck(
        self,
        run: TappedRun,
        taps: Sequence[MapRows],
        stores: Sequence[MemoryLevel | ScratchLevel],
        keep: Tensor | None,
    ) -> list[Candidates]:
        """Computes the neck's maps in one pass over the tokens, and writes them to `stores`.

        Returns:
            The best anchors of each map.
        """
        levels, hidden = self._maps(taps)
        progress = _Progress.earlier(run, stores, len(levels), self._network.device)
        finest = levels[0].height
        rows = progress.rows or self._rows_at_once(run)
        progress.rows = rows
        for store in stores:
            store.open((store.height, store.width), store.channels, goes_on=progress.done > 0)
        most = num_proposals(self._max_objects)
        for start in range(progress.done, finest, rows):
            end = min(start + rows, finest)
            for index, (level, rest) in enumerate(zip(levels, hidden, strict=True)):
                first, last = _share(start, finest, level.height), _share(end, finest, level.height)
                if first == last:
                    continue
                if index < len(stores):
                    some = level.read(first, last)
                    stores[index].write(first, some)
                    progress.sums[index] += bit_sum(some.cpu())
                logits, steps = proposal_outputs(self._network.rpn.head, rest.read(first, last))
                scores = logits.sigmoid()
                if keep is not None:
                    scores.masked_fill_(~_nearest(keep, first, last, level)[:, :, None], -1)
                progress.candidates[index] = _better(
                    progress.candidates[index],
                    scores.flatten(),
                    steps.flatten(0, 2),
                    first * level.width * len(RATIOS),
                    most,
                )
            progress.done = end
            run.save(progress.packed())
            run.advance(end / finest)
        if run.folder is None:  # taps in files are kept, so that the run can be resumed
            for tap in run.taps.values():
                tap.discard()
        return [_counting(one) for one in progress.candidates]

    def _rows_at_once(self, run: TappedRun) -> int:
        """Returns the number of rows of the finest map that are computed at once.

        This number is a multiple of `_LEAST_ROWS`. It is limited by `_MOST_NUMBERS` and by the memory limit.
        """
        finest = self._levels[0]
        room = run.memory // self._number - (self._stored if run.folder is None else 0) - self._candidates()
        rows = max(1, _MOST_NUMBERS // (finest.width * finest.channels * _LEAST_ROWS)) * _LEAST_ROWS
        while rows > _LEAST_ROWS and self._held(rows) > room:
            rows -= _LEAST_ROWS
        return rows

    def _held(self, rows: int) -> int:
        """Returns the number of values that exist at once while `rows` rows of the finest map are computed."""
        kept = passing = 0
        for one in all_maps(*self._levels, *self._hidden):
            num_rows = min(one.height, -(-rows * one.height // self._levels[0].height) + 2 * BEHIND)
            kept += num_rows * one.width * one.channels
            passing = max(passing, one.workspace(num_rows) if isinstance(one, ComputedRows) else 0)
        return round(_FREED * (kept + passing))

    def _candidates(self) -> int:
        """Returns the number of values in the candidates (the best anchors) and in the boxes computed from them."""
        return 32 * len(self._levels) * num_proposals(self._max_objects)


class _Progress:
    """The progress of the pass that computes the neck's maps.

    Attributes:
        rows: number of rows of the finest map that are computed at once; 0 before the pass.
        done: number of rows of the finest map that are finished.
        sums: one checksum per store: the sum of the bit patterns of the stored values.
        candidates: the best anchors of each map so far.
    """

    def __init__(self, rows: int, done: int, sums: list[int], candidates: list[Candidates]) -> None:
        self.rows, self.done, self.sums, self.candidates = rows, done, sums, candidates

    @classmethod
    def earlier(
        cls, run: TappedRun, stores: Sequence[MemoryLevel | ScratchLevel], num_levels: int, device: torch.device
    ) -> "_Progress":
        """Returns the progress of an earlier run if the stores are unchanged; otherwise, returns an empty progress."""
        empty = Candidates(
            torch.zeros(0, device=device),
            torch.zeros(0, dtype=torch.int64, device=device),
            torch.zeros(0, 4, device=device),
        )
        nothing = cls(0, 0, [0] * len(stores), [empty] * num_levels)
        try:
            found = run.earlier["neck"]
            one = cls(
                found["rows"], found["done"], found["sums"], [_unpacked(text, device) for text in found["candidates"]]
            )
            finest = stores[0].height
            for store, total in zip(stores, one.sums, strict=True):
                assert isinstance(store, ScratchLevel)
                if store.sum_of(_share(one.done, finest, store.height)) != total:
                    return nothing
        except (KeyError, ValueError, TypeError, XCiTError):
            return nothing
        return one if len(one.candidates) == num_levels else nothing

    def packed(self) -> Mapping[str, Any]:
        """Returns the progress in a form that JSON can store."""
        candidates = [_packed(one) for one in self.candidates]
        return {"neck": {"rows": self.rows, "done": self.done, "sums": self.sums, "candidates": candidates}}


def _share(row: int, finest: int, height: int) -> int:
    """Converts a row index of the finest map to a row index of another map, rounded up.

    Args:
        row: row of the finest map.
        finest: number of rows of the finest map.
        height: number of rows of the other map.
    """
    return -(-row * height // finest)


def _better(kept: Candidates, scores: Tensor, steps: Tensor, first: int, most: int) -> Candidates:
    """Returns the best anchors among the kept anchors and the anchors of the next rows, at most `most` of them.

    Among anchors with equal scores, earlier anchors are preferred, as in a stable sort of all anchors.

    Args:
        kept: the best anchors so far.
        scores: scores of the anchors of the next rows, (n,).
        steps: offsets from the anchors of the next rows to their boxes, (n, 4).
        first: index of the first anchor of the next rows, among all anchors of the map.
        most: largest number of anchors to return.
    """
    places = torch.arange(first, first + len(scores), device=scores.device)
    if len(kept.scores) == most:
        better = (scores > kept.scores[-1]).nonzero().squeeze(1)
        scores, steps, places = scores[better], steps[better], places[better]
    best, index = best_scores(torch.cat([kept.scores, scores]), most)
    return Candidates(best, torch.cat([kept.places, places])[index], torch.cat([kept.steps, steps])[index])


def _counting(candidates: Candidates) -> Candidates:
    """Removes the candidates with negative scores. A negative score marks an anchor that a mask leaves out."""
    count = int((candidates.scores >= 0).sum())
    return Candidates(*(part[:count] for part in candidates))


def _nearest(keep: Tensor, start: int, end: int, level: MapRows) -> Tensor:
    """Scales the mask of the tokens to a map, and returns rows start:end of the result, bool (end - start, W)."""
    rows, columns = (
        (torch.arange(first, last, device=keep.device) * tokens // length).clamp(max=tokens - 1)
        for first, last, tokens, length in (
            (start, end, keep.shape[0], level.height),
            (0, level.width, keep.shape[1], level.width),
        )
    )
    return keep[rows][:, columns]


def _inside(found: Detections, keep: Tensor, patch_size: int) -> Detections:
    """Removes the objects with a centre in a token that the mask `keep` leaves out."""
    x = ((found.boxes[:, 0] + found.boxes[:, 2]) / (2 * patch_size)).long().clamp(0, keep.shape[1] - 1)
    y = ((found.boxes[:, 1] + found.boxes[:, 3]) / (2 * patch_size)).long().clamp(0, keep.shape[0] - 1)
    inside = keep[y, x]
    return Detections(*(part[inside] for part in found))


def _packed(candidates: Candidates) -> list[str]:
    arrays = (candidates.scores.float(), candidates.places, candidates.steps.float())
    return [base64.b64encode(array.cpu().numpy().tobytes()).decode("ascii") for array in arrays]


def _unpacked(texts: Sequence[str], device: torch.device) -> Candidates:
    scores, index, steps = (
        torch.from_numpy(np.frombuffer(base64.b64decode(text), dtype).copy()).to(device)
        for text, dtype in zip(texts, (np.float32, np.int64, np.float32), strict=True)
    )
    return Candidates(scores, index, steps.view(-1, 4))
