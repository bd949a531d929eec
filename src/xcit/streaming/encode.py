"""Runs a model on one image of any size: makes one pass over the tokens for each block, and collects the outputs."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xcit.errors import XCiTError
from xcit.images.preprocess import Preprocessing
from xcit.images.rows import ImageRows, rows_info
from xcit.machine import forget_peak, peak_resident_memory, resident_memory
from xcit.models.fused import FusedClassAttentionBlock, FusedXCABlock
from xcit.models.kept_tokens import KeptTokens
from xcit.models.stripes import ClassAttentionSums, Leave, Sums, pass_class_block, pass_xca_block
from xcit.models.xcit import FusedXCiT, XCiT
from xcit.streaming.budget import Memory, as_budget
from xcit.streaming.leaving import Leaving
from xcit.streaming.masks import kept_tokens
from xcit.streaming.outputs import Taken, Wanted
from xcit.streaming.pixels import check_channels, image_shape, normalized_stripes
from xcit.streaming.plan import make_plan
from xcit.streaming.report import Report
from xcit.streaming.scratch import earlier_state, tokens_on_scratch
from xcit.streaming.state import RunFolder, State, model_digest
from xcit.streaming.stores import MemoryTokens, ScratchTokens

StreamProgress = Callable[[int, int], None]
"""A function that is called with the number of finished token rows and the total number of token rows in all passes."""


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """The result for an image: the collected outputs, the size (H, W) of the token grid, and the report of the run."""

    taken: Taken
    grid: tuple[int, int]
    report: Report


@torch.inference_mode()
def encode(
    model: XCiT,
    source: ImageRows,
    wanted: Wanted,
    *,
    preprocessing: Preprocessing | None = None,
    memory: Memory = None,
    progress: StreamProgress | None = None,
) -> Encoding:
    """Computes features of an image of any size in bounded memory.

    Up to rounding, the features equal those of one forward pass on the whole image. The image is not resized or
    cropped. If the tokens do not fit within the memory limit, they are stored in scratch files. If a run with scratch
    files was killed, another call with the same model, image and outputs resumes after the last finished pass.

    Args:
        model: the model, on its device and in its dtype. If it is not fused, a fused copy is used.
        source: the source of the rows. Tokens that its mask leaves out are excluded from all sums and means. In maps,
            these tokens are NaN (see `Wanted.left_out`).
        wanted: the requested outputs, by block.
        preprocessing: the preprocessing, of which only mean and standard deviation are used. None means the model's
            preprocessing.
        memory: limit of the memory in addition to the loaded model (see `Budget`).
        progress: called after each stripe.

    Raises:
        XCiTError: if the image does not fit the model or can't be read, or if the memory limit is too small.
    """
    network = model.fuse()
    if not isinstance(network, FusedXCiT):
        raise XCiTError(
            "an exported file can't process images in stripes: to process images at full size, give the original model"
        )
    spec = preprocessing or (network.info.preprocessing if network.info is not None else None)
    if spec is None:
        raise XCiTError("the model does not say how to prepare images: give the preprocessing, or set model.info")
    run = _Run(network, source, wanted, spec, memory, progress)
    return run.encoding()


class _Run:
    """One call of `encode`."""

    def __init__(
        self,
        model: FusedXCiT,
        source: ImageRows,
        wanted: Wanted,
        spec: Preprocessing,
        memory: Memory,
        progress: StreamProgress | None,
    ) -> None:
        config, name = model.config, rows_info(source).name
        if len(spec.mean) != config.in_channels:
            raise XCiTError(f"preprocessing has {len(spec.mean)} means, the model takes {config.in_channels} channels")
        check_channels(source, spec)
        if min(source.height, source.width) < config.patch_size:
            raise XCiTError(
                f"{name}: {source.width} x {source.height} pixels, smaller than one patch of {config.patch_size} x "
                f"{config.patch_size}"
            )
        wanted.check(config.depth, config.cls_depth)
        self._model, self._source, self._wanted, self._spec = model, source, wanted, spec
        parameter = next(model.parameters())
        self._device, self._dtype, self._dim = parameter.device, parameter.dtype, config.embed_dim
        self._num_blocks = config.depth + config.cls_depth
        self._last_block = wanted.last_block()
        self._blocks = [*model.blocks, *(model.cls_blocks if config.cls_depth else [])][: self._last_block + 1]
        self._budget = as_budget(memory)
        self._stored = self._budget.token_dtype or self._dtype
        self._taken, self._progress = Taken(), progress
        self._grid = model.embedding.grid(source.height, source.width)
        self._rows_done = 0
        keep = kept_tokens(source, config.patch_size)
        self._kept = KeptTokens(None if keep is None else keep.to(self._device))
        outputs = 0 if keep is None else keep.numel()
        outputs += sum(one.memory(self._grid, self._dim) for one in wanted.maps.values())
        if wanted.attention is not None:
            outputs += 4 * config.num_heads * self._grid[0] * self._grid[1]
        self._plan = make_plan(
            model, image_shape(source), self._budget.bound(), token_dtype=self._stored, output_bytes=outputs
        )

    def encoding(self) -> Encoding:
        """Runs all passes and returns the result."""
        began = time.perf_counter()
        with suppress(OSError):
            forget_peak()
        before = resident_memory()
        if self._plan.place == "scratch":
            resumed_from, moved = self._on_scratch()
        else:
            resumed_from, moved = 0, (0, 0)
            self._in_memory()
        peak = peak_resident_memory()
        report = Report(
            height=self._source.height,
            width=self._source.width,
            plan=self._plan,
            passes=len(self._blocks) + 1,
            resumed_from=resumed_from,
            seconds=time.perf_counter() - began,
            peak_bytes=None if peak is None or before is None else max(0, peak - before),
            bytes_read=moved[0],
            bytes_written=moved[1],
        )
        return Encoding(taken=self._taken, grid=self._grid, report=report)

    def _in_memory(self) -> None:
        state = State()
        place = self._device if self._plan.place == "device" else torch.device("cpu")
        tensor = torch.empty(*self._grid, self._dim, dtype=self._stored, device=place)
        tokens = MemoryTokens(tensor, self._device, self._dtype)
        try:
            self._open_maps(goes_on=False)
            for index in range(-1, len(self._blocks)):
                self._one_pass(index, tokens, state)
        except BaseException:
            self._discard_maps()
            raise

    def _on_scratch(self) -> tuple[int, tuple[int, int]]:
        """Runs the passes with the tokens in scratch files.

        Returns:
            The number of passes that an earlier run had finished, and the numbers of bytes read and written.
        """
        folder = RunFolder(self._budget.scratch_folder(), self._key(), self._plan.scratch_bytes)
        try:
            with tokens_on_scratch(
                folder, self._plan, self._dim, stored=self._stored, device=self._device, dtype=self._dtype
            ) as tokens:
                state = earlier_state(folder, tokens, self._wanted.maps, self._device)
                resumed_from = state.passes
                self._taken.class_tokens, self._taken.means = state.class_tokens, state.means
                self._rows_done = resumed_from * self._grid[0]
                self._open_maps(goes_on=bool(resumed_from))
                for index in range(resumed_from - 1, len(self._blocks)):
                    tokens.start_pass()
                    self._one_pass(index, tokens, state)
                    tokens.finish_pass()
                    state.passes, state.current, state.checksum = index + 2, tokens.current, tokens.checksum
                    if index < self._last_block:
                        state.save(folder.state)
        except BaseException:
            if not folder.state.exists():
                self._discard_maps()
            raise
        return resumed_from, (tokens.bytes_read, tokens.bytes_written)

    def _open_maps(self, *, goes_on: bool) -> None:
        for one in self._wanted.maps.values():
            one.open(self._grid, self._dim, goes_on=goes_on)

    def _discard_maps(self) -> None:
        for one in self._wanted.maps.values():
            one.discard()

    def _key(self) -> str:
        """Returns the key of the run. A run resumes an earlier run only if their keys are equal."""
        identity = rows_info(self._source).identity
        if identity is None:
            # A later run can't check whether the image has changed. So each run gets its own text and can't be resumed.
            identity = f"process of its own {id(self)} {time.time_ns()}"
        wanted, maps = self._wanted, sorted(self._wanted.maps)
        what = (sorted(wanted.class_tokens), sorted(wanted.means), maps, wanted.attention, str(self._spec))
        return f"{model_digest(self._model)} {identity} {self._grid} {self._stored} {what}"

    def _one_pass(self, index: int, tokens: MemoryTokens | ScratchTokens, state: State) -> None:
        """Runs one pass: with index -1, the pass that embeds the image; otherwise, the pass of block `index`."""
        wanted, is_last = self._wanted, index == self._last_block
        is_normed = self._model.config.cls_depth > 0 and index == self._num_blocks - 1
        leaving = Leaving(
            None if is_last else tokens.write,
            self._model.norm if is_normed else None,
            wanted.maps.get(index),
            mean=index in wanted.means,
            kept=self._kept,
            left_out=wanted.left_out,
        )

        def leave(start: int, rows: Tensor) -> None:
            leaving(start, rows)
            self._advance(len(rows))

        block = self._blocks[index] if index >= 0 else None
        following = self._blocks[index + 1] if index + 1 < len(self._blocks) else None
        norm = following.norm_xca if isinstance(following, FusedXCABlock) else None
        rows_at_once = self._plan.rows_at_once
        if block is None:
            state.sums = self._embed(leave, norm)
        elif isinstance(block, FusedXCABlock):
            assert state.sums is not None
            state.sums = pass_xca_block(block, tokens, state.sums, rows_at_once, leave, norm, self._kept)
        else:
            assert isinstance(block, FusedClassAttentionBlock)
            state.sums = None
            state.cls = self._attend(index, block, tokens, state.cls, leaving if leaving.is_heard else None)
        mean = leaving.mean()
        if mean is not None:
            self._taken.means[index] = mean.to(self._dtype)

    def _embed(self, leave: Leave, norm: nn.Module | None) -> Sums:
        sums = Sums.empty(self._dim, self._device)
        stripes = normalized_stripes(
            self._source,
            self._spec,
            read_rows=self._plan.read_rows,
            rows_at_once=self._plan.pixel_rows_at_once,
            device=self._device,
            dtype=self._dtype,
        )
        for start, rows in self._model.embedding.slide(stripes, self._source.height, self._source.width):
            leave(start, rows[0])
            if norm is not None:
                sums.add(norm(self._kept.of(start, rows[0])))
        return sums

    def _attend(
        self,
        index: int,
        block: FusedClassAttentionBlock,
        tokens: MemoryTokens | ScratchTokens,
        cls: Tensor | None,
        leave: Leave | None,
    ) -> Tensor:
        """Runs a class attention block; returns the class token (D,) after it."""
        token = self._model.cls_token if cls is None else cls.to(self._dtype).view(1, 1, -1)
        attention = ClassAttentionSums(block, token)
        scores: Tensor | None = None
        if self._wanted.attention == index:
            scores = torch.full((attention.total.shape[1], *self._grid), torch.nan)

        rows_at_once, keep = self._plan.rows_at_once, self._kept.keep

        def hear(start: int, some: Tensor) -> None:
            end = min(start + rows_at_once, self._grid[0])
            if scores is not None and keep is None:
                scores[:, start:end] = some[0].unflatten(1, (-1, self._grid[1]))
            elif scores is not None and keep is not None:
                scores[:, start:end][:, keep[start:end].cpu()] = some[0].cpu()
            self._advance(end - start)

        pass_class_block(block, attention, tokens, rows_at_once, leave=leave, hear=hear, kept=self._kept)
        if scores is not None:
            for head, largest, total in zip(scores, attention.largest[0], attention.total[0], strict=True):
                head.sub_(largest.cpu()).exp_().div_(total.cpu())
            self._taken.attention = scores
            self._taken.class_shares = attention.shares(attention.class_scores)[0, :, 0].cpu().float()
        token = block.finish(token, attention.value())
        if index in self._wanted.class_tokens:
            is_last = index == self._num_blocks - 1
            self._taken.class_tokens[index] = (self._model.norm(token) if is_last else token)[0, 0]
        return token[0, 0]

    def _advance(self, rows: int) -> None:
        self._rows_done += rows
        if self._progress is not None:
            self._progress(self._rows_done, (len(self._blocks) + 1) * self._grid[0])
