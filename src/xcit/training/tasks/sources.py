"""Finds the weights that a field of a config refers to: a known checkpoint or a file."""

from xcit.errors import XCiTError
from xcit.weights.wrapping import split_key
from xcit.zoo import Checkpoint, find_checkpoint
from xcit.zoo.adapters import is_adapter
from xcit.zoo.folders import is_folder
from xcit.zoo.names import is_file, is_url


def find_source(source: str, field: str) -> Checkpoint | None:
    """Returns the checkpoint with the name `source`; None for a path, a URL or a repository. Reads no file.

    Args:
        source: name or alias of a checkpoint, a URL, a repository of the Hub ("hf-hub:USER/REPO"), or a path. A
            path may end with the key of one set of weights in the file ("last.ckpt#model_ema").
        field: dotted name of the config field, for the error message.

    Raises:
        XCiTError: if there is no such checkpoint or no such file. For a checkpoint, the message suggests the nearest
            names.
    """
    if is_url(source):
        return None
    if is_file(source):
        if not (split_key(source)[0].is_file() or is_folder(source) or is_adapter(source)):
            raise XCiTError(f"{field}: {source}: no such file")
        return None
    try:
        return find_checkpoint(source)
    except XCiTError as error:
        raise XCiTError(f"{field}: {error}") from None
