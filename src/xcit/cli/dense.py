"""What the verbs of segmenters and detectors share: where results go, and the model with its weights."""

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
    """The images for Parquet parts; or none of these, the files, and where in the folder `out` their results go."""
    if parquet:
        need_packages("Parquet", "pyarrow")
        return open_words(inputs, bulk), [], []
    check_small(bulk, "give --parquet")
    paths = images_outside(inputs, out)
    places = [out / name for name in result_names(paths)]
    make_folder(out)
    return None, paths, places


def load_dense(model: str, weights: str | None, how: FileOptions) -> Any:
    """A model by name or file, with its weights, its preprocessing as `how` says."""
    from xcit.cli.progress import download_bar
    from xcit.deploy import exported_or
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
