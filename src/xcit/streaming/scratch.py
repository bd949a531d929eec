"""A run on scratch files: what an earlier one has left, and what stays when this one fails."""

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
    """Tokens (H, W, `dim`) in the two files of a folder.

    When the run fails, the tokens of its last finished pass stay, with its state, if there is one; else nothing does.
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
            if state is not None:  # what the pass that failed has written is of no use
                empty_file(folder.tokens[1 - state.current])
            raise
        finally:
            tokens.close()
    finally:
        folder.leave(keep=keep)


def earlier_state(
    folder: RunFolder, tokens: ScratchTokens, maps: Mapping[int, TokenMap], device: torch.device
) -> State:
    """How far an earlier run has come, if all that it left is still there; else a state of nothing."""
    state = State.load(folder.state, device)
    if state is not None:
        tokens.current = state.current
        # All rows after these blocks have gone to their maps.
        finished = [one for block, one in maps.items() if block <= state.passes - 2]
        if all(one.can_go_on() for one in finished) and tokens.holds(state.checksum):
            return state
    folder.state.unlink(missing_ok=True)
    tokens.current = 0
    return State()
