"""What our modules can't be taken through, each said in one line with the way out."""

from typing import Any, NoReturn

import torch.fx

from xcit.errors import XCiTError


class NotScripted:
    """A module that TorchScript's compiler does not take: it chooses among forms by what its layers are."""

    def __prepare_scriptable__(self) -> NoReturn:
        """What `torch.jit.script` calls first, on a module and on each within it."""
        raise XCiTError(
            f"torch.jit.script can't compile {type(self).__name__}: use torch.jit.trace(model, images), whose graph "
            "serves every size, or torch.export"
        )


def refuse_symbols(*values: Any) -> None:
    """Refuses to be traced by `torch.fx`, as a module whose form depends on the sizes that it sees.

    Raises:
        XCiTError: if one of the values is a symbol of the tracer.
    """
    if any(isinstance(value, torch.fx.Proxy) for value in values):
        raise XCiTError(
            "torch.fx can't trace into an XCiT's blocks and position code: give its tracer "
            "xcit.models.FX_LEAF_MODULES as leaf modules, or take a graph from torch.export or torch.jit.trace"
        )
