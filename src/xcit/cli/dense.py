"""What the commands of segmenters and detectors share: the places of results, and loading the model."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from xcit.cli.bulk import BulkOptions, check_small, open_words
from xcit.cli.files import images_outside, result_names
from xcit.cli.options import FileOptions
from xcit.extras import need_packages
from xcit.writing import make_folder

if TYPE_CHECKING:
    from xcit.data.inputs import Inputs


def inputs_and_places(
    inputs: tuple[str, ...], out: Path, parquet: bool, bulk: BulkOptions
) -> "tuple[Inputs | None, list[Path], list[Path]]":
    """Returns the images for Parquet parts, or None with the image files and the places of their results in `out`."""
    if parquet:
        need_packages("Parquet", "pyarrow")
        return open_words(inputs, bulk), [], []
    check_small(bulk, "give --parquet")
    paths = images_outside(inputs, out)
    places = [out / name for name in result_names(paths)]
    make_folder(out)
    return None, paths, places


def load_dense(model: str, weights: str | None, how: FileOptions) -> Any:
    """Loads a model by name or file, with its weights and with the preprocessing of `how`."""
    from xcit.cli.progress import download_bar
    from xcit.zoo import get_model

    with download_bar() as downloaded:
        built = get_model(
            model, pretrained=weights or True, stem_strides=how.stem_strides, key=how.key, progress=downloaded
        )
    how.apply(built, weights or model)
    return built
