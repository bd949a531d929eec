"""Opens inputs, chooses result paths, and loads models, for `xcit segment`, `xcit detect` and `xcit attention`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from xcit.cli.bulk import BulkOptions, check_small, open_words
from xcit.cli.files import images_outside, result_names
from xcit.cli.options import FileOptions
from xcit.extras import need_packages
from xcit.writing import make_folder

if TYPE_CHECKING:
    from xcit.data.inputs import Input, Inputs


def inputs_and_places(
    inputs: tuple[str, ...], out: Path, parquet: bool, bulk: BulkOptions, *, ignore_exif: bool
) -> "tuple[Inputs | None, list[Input], list[Path]]":
    """Returns the images of a command, and the paths of their results.

    For Parquet parts, returns (inputs, [], []). Otherwise, returns (None, images, paths). Each path is in the folder
    `out`, and has no ending yet.
    """
    if parquet:
        need_packages("Parquet", "pyarrow")
        return open_words(inputs, bulk, ignore_exif=ignore_exif), [], []
    check_small(bulk, "give --parquet")
    paths = images_outside(inputs, out)
    places = [out / name for name in result_names(paths)]
    make_folder(out)
    return None, stored_or_upright(paths, ignore_exif=ignore_exif), places


def stored_or_upright(paths: list[Path], *, ignore_exif: bool) -> "list[Input]":
    """Returns inputs for image files. If `ignore_exif` is true, the inputs are read without the EXIF orientation."""
    from xcit.data.inputs import as_stored

    return [as_stored(path) if ignore_exif else path for path in paths]


def load_dense(model: str, weights: str | None, how: FileOptions) -> Any:
    """Loads a segmenter or detector by name or file, and applies the user's weights and options."""
    from xcit.deploy import exported_or
    from xcit.progress import download_bar
    from xcit.zoo import get_model

    with download_bar() as downloaded:
        built: Any = exported_or(
            model,
            None,
            lambda: get_model(
                model, pretrained=weights or True, stem_strides=how.stem_strides, key=how.key, progress=downloaded
            ),
            changed=how.changes(weights),
        )
    how.apply(built, weights or model)
    return built
