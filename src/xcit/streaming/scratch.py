"""Manages the scratch files of a run. If the run fails after a finished pass, a later run can resume from the files."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from xcit.streaming.outputs import TokenMap
from xcit.streaming.plan import Plan
from xcit.streaming.state import RunFolder, State, empty_file
from xcit.streaming.stores import ScratchTokens


@contextmanager
def tokens_on_scratch(
    folder: RunFolder, plan: Plan, dim: int, *, stored: torch.dtype, device: torch.device, dtype: torch.dtype
) -> Iterator[ScratchTokens]:
    """Opens the tokens (H, W, `dim`) of a run in the two scratch files of its folder.

    If the body of the `with` statement fails after a finished pass, the tokens and the state of this pass stay in the
    folder. Otherwise, the folder is removed at the end.

    Args:
        folder: the folder of the run.
        plan: the plan of the run.
        dim: width of a token.
        stored: dtype of the tokens in the files.
        device: the device of the model.
        dtype: the dtype of the model.

    Yields:
        The tokens.
    """
    keep = False
    try:
        tokens = ScratchTokens(
            folder.tokens, (*plan.grid, dim), plan.rows_at_once, stored=stored, device=device, dtype=dtype
        )
        try:
            yield tokens
        except BaseException:
            tokens.close()
            state = State.load(folder.state, device)
            keep = state is not None
            if state is not None:  # the incomplete output of the failed pass is not needed
                empty_file(folder.tokens[1 - state.current])
            raise
        finally:
            tokens.close()
    finally:
        folder.leave(keep=keep)


def earlier_state(
    folder: RunFolder, tokens: ScratchTokens, maps: Mapping[int, TokenMap], device: torch.device
) -> State:
    """Returns the state of an earlier run.

    Returns an empty state if there was no earlier run, or if its tokens or finished maps are not complete.
    """
    state = State.load(folder.state, device)
    if state is not None:
        tokens.current = state.current
        # The passes of these blocks are finished, so all rows of their maps have been written.
        finished = [one for block, one in maps.items() if block <= state.passes - 2]
        if all(one.can_go_on() for one in finished) and tokens.holds(state.checksum):
            return state
    folder.state.unlink(missing_ok=True)
    tokens.current = 0
    return State()
