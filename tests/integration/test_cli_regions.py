"""Tests the command line with parts of files and masks, and maps that other programs can open."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import tifffile
import zarr
from PIL import Image

import xcit as package
from xcit.images.selection import Selection
from xcit.inference.classify import Features, extract_features_each
from xcit.inference.full_size import FullSize

TRANSFORM = rasterio.Affine(10, 0, 500_000, 0, -10, 5_300_000)
MEMORY = ("--memory", "1GB")


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """Writes a GeoTIFF of 88 x 60 pixels with four bands of 16 bits, and nodata in the lower left."""
    pixels = np.random.default_rng(0).integers(1, 4000, (4, 60, 88)).astype(np.uint16)
    pixels[:, 20:, :30] = 0
    path = tmp_path / "scene.tif"
    with rasterio.open(
        path, "w", driver="GTiff", height=60, width=88, count=4, dtype="uint16", crs="EPSG:32632", transform=TRANSFORM,
        nodata=0, tiled=True, blockxsize=16, blockysize=16,
    ) as file:  # fmt: skip
        file.write(pixels)
    return path


def test_attention_of_a_map_lies_on_the_same_place(xcit, scene: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    options = ("--full-size", "--bands", 2, "--range", "0,4000", "--tiff", "--arrays", *MEMORY)
    done = xcit("attention", scene, "--out", tmp_path / "maps", *options)
    assert done.status == 0, done.err
    with rasterio.open(scene) as image, rasterio.open(tmp_path / "maps" / "scene.tif") as maps:
        assert maps.crs == image.crs and maps.bounds == image.bounds
        assert maps.shape == (15, 22) and maps.dtypes[0] == "float32" and np.isnan(maps.nodata)
        assert maps.descriptions[:2] == ("mean", "head 0")
        mean, masked = maps.read(1), maps.read_masks(1) == 0
    expected = np.zeros((15, 22), np.bool_)
    expected[5:, :7] = True  # the eighth column is half inside the mask
    assert np.array_equal(masked, expected) and np.array_equal(np.isnan(mean), expected)
    heads = np.load(tmp_path / "maps" / "scene.npz")["heads"]
    assert np.array_equal(heads.mean(axis=0), mean, equal_nan=True)
    assert picture(tmp_path / "maps" / "scene-overlay.png").shape == (60, 88, 3)

    region = ("--region", "8,20,70,36")
    assert xcit("attention", scene, "--out", tmp_path / "part", *options, *region).status == 0
    with rasterio.open(tmp_path / "part" / "scene.tif") as part:
        # 70 pixels are 17.5 cells of 4 pixels, so the last cell extends beyond the edge.
        assert part.bounds == (500_080, 5_299_440, 500_080 + 18 * 40, 5_299_800)


def test_feature_maps_say_where_they_lie(xcit, scene: Path, tmp_path: Path) -> None:
    common = ("features", scene, "--full-size", "--out-type", "featmap", "--bands", 1, "--range", "0,4000", *MEMORY)
    assert xcit(*common, "--out", tmp_path / "a.npy").status == 0
    assert xcit(*common, "--out", tmp_path / "b.zarr").status == 0
    found, about = np.load(tmp_path / "a.npy"), json.loads((tmp_path / "a.json").read_text())
    array = zarr.open_array(str(tmp_path / "b.zarr"), mode="r")
    assert np.array_equal(found, array[:], equal_nan=True) and dict(array.attrs) == about
    assert found.shape == (15, 22, 64) and np.isnan(found[5:, :7]).all() and np.isfinite(found[:5]).all()
    assert about["cell_to_pixel"] == [4, 0, 0, 0, 4, 0] and about["cell_to_map"] == [40, 0, 500_000, 0, -40, 5_300_000]
    assert rasterio.crs.CRS.from_wkt(about["crs"]).to_epsg() == 32632 and about["source"] == str(scene)
    for name in ("a.png", "b.png"):
        shown = picture(tmp_path / name)
        assert shown.shape == (15, 22, 3) and (shown[5:, :7] == 255).all() and len(np.unique(shown[:5])) > 20
    assert xcit(*common, "--out", tmp_path / "b.zarr").status == 0  # replaces the first file
    (tmp_path / "c.zarr").mkdir()
    done = xcit(*common, "--out", tmp_path / "c.zarr")
    assert done.status == 2 and "c.zarr: exists and is not a Zarr array: choose another name" in done.err


def test_a_level_and_a_mask_of_a_pyramid(xcit, tmp_path: Path) -> None:
    large = np.random.default_rng(0).integers(0, 256, (120, 160), dtype=np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(large, tile=(16, 16), subifds=1)
        writer.write(large[::2, ::2], tile=(16, 16), subfiletype=1)
    mask = np.zeros((6, 8), np.uint8)
    mask[2:, 4:] = 1
    Image.fromarray(mask * 255).save(tmp_path / "mask.png")
    options = ("--full-size", "--level", 1, "--mask", tmp_path / "mask.png", *MEMORY)
    assert (
        xcit("features", tmp_path / "a.tif", "--out", tmp_path / "a.npz", "--out-type", "featmap", *options).status == 0
    )
    (name,) = [name for name in np.load(tmp_path / "a.npz").files if name.startswith("block")]
    found = np.load(tmp_path / "a.npz")[name][0]
    assert found.shape == (64, 15, 20)
    assert np.array_equal(np.isfinite(found).all(axis=0), np.kron(mask, np.ones((10, 10)))[::4, ::4][:15, :20] > 0)
    # An array and a mask in memory give the same result.
    whole = FullSize(memory="1GB", selection=Selection(mask=mask))
    (features,) = extract_features_each([large[::2, ::2]], out_type="featmap", full_size=whole)
    assert isinstance(features, Features)
    np.testing.assert_allclose(next(iter(features.layers.values())), found, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--bands", "1"), "--bands is for images at their own size: give --full-size too"),
        (("--range", "0,1"), "--range is for images at their own size: give --full-size too"),
        (("--full-size", "--region", "0,0,5"), "the region is (0, 0, 5), but must be x, y, width and height"),
        (("--full-size", "--level", "0", "--mpp", "1"), "give a level, or micrometres per pixel (mpp), not both"),
        (("--full-size", "--mask", "m.png"), "--mask m.png is for one image, not for 2"),
    ],
)
def test_mistakes_end_in_one_line(xcit, words: tuple[str, ...], message: str) -> None:
    images = Path(package.__file__).parent / "zoo/packaged/images"
    done = xcit("predict", images / "bag.png", images / "coat.png", *words)
    assert done.status == 2 and message in done.err and len(done.err.splitlines()) == 1


def test_channels_that_do_not_fit_say_the_way_out(xcit, scene: Path) -> None:
    done = xcit("predict", scene, "--full-size")
    assert done.status == 1 and "scene.tif: has 4 channels, the model takes 1: choose bands" in done.err
