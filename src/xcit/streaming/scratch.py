"""The scratch files of a run: a run resumes from those of an earlier run, and keeps its own if it fails."""

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
    """Opens tokens (H, W, `dim`) in the two files of a folder.

    If the run fails after a finished pass, the tokens and the state of that pass stay; otherwise nothing stays.
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
            if state is not None:  # the output of the failed pass is useless
                empty_file(folder.tokens[1 - state.current])
            raise
        finally:
            tokens.close()
    finally:
        folder.leave(keep=keep)


def earlier_state(
    folder: RunFolder, tokens: ScratchTokens, maps: Mapping[int, TokenMap], device: torch.device
) -> State:
    """Returns the state of an earlier run if everything that it left is still there; otherwise an empty state."""
    state = State.load(folder.state, device)
    if state is not None:
        tokens.current = state.current
        # All rows after these blocks have been written to their maps.
        finished = [one for block, one in maps.items() if block <= state.passes - 2]
        if all(one.can_go_on() for one in finished) and tokens.holds(state.checksum):
            return state
    folder.state.unlink(missing_ok=True)
    tokens.current = 0
    return State()
