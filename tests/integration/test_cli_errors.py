"""Tests users' mistakes: exit status 2, a message that says what is wrong and what to do, and never a traceback."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from safetensors.torch import save_file as save_tensors

from xcit.cli.predict import packaged_images
from xcit.models import XCiT, XCiTConfig
from xcit.weights.files import read_checkpoint
from xcit.zoo import CHECKPOINTS, get_model, save_model
from xcit.zoo.load import packaged_path

PACKAGED = packaged_path(CHECKPOINTS["xcit-pico-fashion-mnist"])
NANO = "xcit-nano-12-p16_8xb128_in1k"
PICO = "xcit-pico-fashion-mnist"


class Hostile:
    """A pickle that creates a file when it is loaded without protection."""

    def __reduce__(self):
        return Path.touch, (Path("was-run"),)


@pytest.fixture(scope="module")
def things(tmp_path_factory) -> Path:
    """Writes a folder with all kinds of wrong files, and a few correct files."""
    root = tmp_path_factory.mktemp("things")
    for folder in ("empty", "taken", "flat", "hollow/full", "hollow/void"):
        (root / folder).mkdir(parents=True)
    image = packaged_images()[0]
    for place in ("a.png", "picture.pth", "flat/a.png", "hollow/full/a.png"):
        shutil.copy(image, root / place)
    (root / "file").touch()
    (root / "hostile.pth").write_bytes(pickle.dumps({"model": Hostile()}, protocol=2))
    (root / "zero.pth").touch()
    (root / "text.safetensors").write_text("text")
    data = PACKAGED.read_bytes()
    (root / "cut.safetensors").write_bytes(data[: len(data) // 2])
    (root / "flipped.safetensors").write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    save_model(get_model("packaged"), root / "bare.safetensors")  # no class names, no preprocessing
    save_model(get_model("packaged", num_classes=7), root / "seven.safetensors")
    save_model(XCiT(XCiTConfig(patch_size=8, embed_dim=16, depth=1, num_heads=2)), root / "other.safetensors")
    headless = get_model("packaged", pretrained=True)
    info = headless.info
    headless.reset_classifier(0)
    headless.info = info
    save_model(headless, root / "headless.safetensors")
    infinite = load_file(PACKAGED)
    infinite["norm.weight"][3] = torch.inf
    save_tensors(infinite, root / "infinite.safetensors")
    state = read_checkpoint(PACKAGED).state
    torch.save({"epoch": 3, "optimizer": {}}, root / "optimizer.pth")
    torch.save({name: tensor for name, tensor in state.items() if "norm" not in name}, root / "gaps.pth")
    (root / "bad.yaml").write_text("model: [1, 2\n")
    (root / "list.yaml").write_text("- 1\n")
    (root / "field.yaml").write_text("name: x\nmodel: {}\npreprocessing: {image_sise: 3}\n")
    return root


@pytest.fixture(autouse=True)
def _among_the_things(things, colours, trained, monkeypatch, tmp_path):
    """Links all files of the fixture `things` into the working folder, so that commands look as users type them."""
    for thing in (*things.iterdir(), colours):
        (tmp_path / thing.name).symlink_to(thing)
    shutil.copytree(trained[0], tmp_path / "run")


ONE_LINE = [
    # images
    ("predict empty", "empty: a folder without images"),
    ("predict nothing/*.jpg", "nothing/*.jpg: no image matches this pattern"),
    ("features empty --out a.npz", "empty: a folder without images"),
    # models and weights
    ("predict --model xcit-nano-12-p61", "no model is called 'xcit-nano-12-p61'; did you mean 'xcit-nano-12-p16'"),
    ("predict --model empty", "empty is a folder, not a checkpoint"),
    ("predict --model nowhere.pth", "cannot read nowhere.pth: no such file"),
    ("predict --model picture.pth", "picture.pth is a PNG image, not a checkpoint"),
    ("predict --model zero.pth", "zero.pth is empty"),
    ("predict --model text.safetensors", "text.safetensors is damaged: it has no safetensors header"),
    ("predict --model cut.safetensors", "cut.safetensors is damaged or not a safetensors file"),
    ("predict --model flipped.safetensors", "flipped.safetensors: damaged: its tensors do not match the digest"),
    ("predict --model optimizer.pth", "optimizer.pth has no weights under 'model', 'state_dict' or 'teacher'"),
    ("predict --model hostile.pth", "which does not belong to weights: not loaded, nothing was run"),
    ("predict --model bare.safetensors", "bare.safetensors: the file does not say how to prepare images; give the"),
    ("features a.png --out a.npz --model bare.safetensors", "bare.safetensors: the file does not say how to prepare"),
    ("predict --model headless.safetensors", "has no classifier: it gives features only"),
    ("predict --model headless.safetensors --json a.json", "has no classifier: it gives features only"),
    ("verify nowhere.safetensors", "cannot read nowhere.safetensors: no such file"),
    ("verify xcit-picco", "no model is called 'xcit-picco'; did you mean"),
    ("verify flipped.safetensors", "flipped.safetensors: damaged: its tensors have digest"),
    ("verify infinite.safetensors", "1 tensors contain NaN or infinity, the first is norm.weight"),
    ("verify hostile.pth", "nothing was run"),
    ("convert nowhere.pth a.pth --to timm", "cannot read nowhere.pth: no such file"),
    ("convert empty a.pth --to timm", "empty is a folder, not a checkpoint"),
    ("convert hostile.pth a.pth --to timm", "nothing was run"),
    ("convert bare.safetensors a.onnx --to timm", "a.onnx must end in .safetensors or one of .pth, .pt, .bin"),
    ("convert bare.safetensors zero.pth --to timm", "zero.pth already exists: choose another destination"),
    ("convert bare.safetensors bare.safetensors --to timm --overwrite", "is the source file"),
    ("convert bare.safetensors nowhere/a.pth --to timm", "nowhere/a.pth: can't be written: No such file or directory"),
    ("info xcit-nanno", "no model is called 'xcit-nanno'; did you mean"),
    ("list resnet", "no model matches 'resnet'; `xcit list` shows all"),
    ("fetch resnet*", "no model matches 'resnet*'; `xcit list` shows all"),
    ("fetch resnet", "no model is called 'resnet'"),
    ("fetch xcit-nano-12-p16 --to file", ("xcit: file: can't be made: File exists",)),
    # where to compute, where to write
    ("predict --device gpu", "--device gpu: not on this machine"),
    ("predict --device cuda:99", "--device cuda:99: not on this machine"),
    ("predict --device meta", "--device meta: not on this machine"),
    ("predict --json nowhere/a.json", "nowhere/a.json: can't be written: No such file or directory"),
    ("predict --json empty", "empty: a folder, not a file for results"),
    ("predict --csv file/a.csv", "file/a.csv: can't be written: Not a directory"),
    ("predict --json a.json --csv a.csv", "give --json or --csv, not both"),
    ("features a.png --out a.txt", "a.txt: the name of a file of features must end in .npz, .safetensors, .parquet"),
    ("features a.png --out nowhere/a.npz", "nowhere/a.npz: there is no folder nowhere"),
    ("features a.png --out a.npz --layers 8", "there is no block 8: the model has 8 blocks, counted from 0"),
    ("features a.png --out a.npz --layers 0", "block 0 has no class token: the class token enters at block 6 of 8"),
    # recipes and their fields
    ("config xcit-nano-12-p16_8xb128_in2k", f"called 'xcit-nano-12-p16_8xb128_in2k'; did you mean '{NANO}"),
    ("config configs/xcit/xcit-nano-12-p16_8xb128.py", f"called 'xcit-nano-12-p16_8xb128'; did you mean '{NANO}"),
    ("config nowhere.yaml", "nowhere.yaml: No such file or directory"),
    ("config bad.yaml", "bad.yaml: not a YAML config"),
    ("config list.yaml", "list.yaml: not a YAML config: its top level is not a mapping"),
    ("config field.yaml", "field.yaml: preprocessing.image_sise is not a field; did you mean 'image_size'?"),
    (f"config {NANO} --epochs 3", "no config field 'epochs'; did you mean 'schedule.epochs'?"),
    (f"config {NANO} --optimizer.lrr 3", "no config field 'optimizer.lrr'; did you mean 'optimizer.lr'?"),
    (f"config {NANO} --optimizer.lr fast", "optimizer.lr must be of type float, not 'fast'"),
    (f"config {NANO} --schedule.epochs 1.5", "schedule.epochs must be of type int, not 1.5"),
    (f"config {NANO} --run.dtype float8", "run.dtype must be one of float32, bfloat16, float16, not 'float8'"),
    (f"config {NANO} --run.batch_size 0", "batch_size is 0, but must be at least 1"),
    (f"config {NANO} --optimizer.lr -1", "lr is -1.0, but must be 0 or more"),
    (f"config {NANO} --augmentation.flip 2", "flip is 2.0, but must be in 0..1"),
    (f"config {NANO} --augmentation.scale 2,3", "scale is (2.0, 3.0), but must be two numbers above 0 and at most 1"),
    (f"config {NANO} --preprocessing.image_size 0", "image_size is 0, but must be at least 1"),
    (f"config {NANO} --model.num_heads 3", "embed_dim 128 must be a multiple of num_heads 3"),
    # training
    (f"train {NANO}", "has no data of its own: give a folder of images by class with --data"),
    (f"train {NANO} --data nowhere", "nowhere: no such folder; data must be a folder of images by class"),
    (f"train {NANO} --data empty", "empty: no images by class: expected a folder for each class"),
    (f"train {NANO} --data hollow", "hollow: no images of class 'void'; remove the empty folder or fill it"),
    (f"train {NANO} --data colours", "colours has 3 classes, the model has 1000: set model.num_classes to 3"),
    (f"train {NANO} --data colours --device cuda:99", "--device cuda:99: not on this machine"),
    (f"train {PICO} --outt a", "no option --outt; did you mean --out?"),
    (f"train {PICO} --epochs 3", "no config field 'epochs'; did you mean 'schedule.epochs'?"),
    (f"train {PICO} --schedule.epochs many --data nowhere", "schedule.epochs must be of type int, not 'many'"),
    ("train pico-fashion", f"no recipe is called 'pico-fashion'; did you mean '{PICO}'?"),
    ("train run/config.yaml", "run already contains a run: resume it, or choose another folder"),
    (f"train {PICO} --out run --data nowhere", "run already contains a run: resume it, or"),
    ("train run/config.yaml --out none --resume nowhere.pt", "nowhere.pt: no such checkpoint"),
    ("train run/config.yaml --out none --resume empty", "empty/last.pt: no such checkpoint"),
    ("train run/config.yaml --resume file", "run already contains another run, to which file does not belong"),
    ("train run/config.yaml --out none --resume file", "file: not a checkpoint of a run, or damaged"),
    ("train run/config.yaml --resume --model.depth 2", "run/last.pt belongs to another model: resume with the config"),
    ("train run/config.yaml --resume --run.ema_decay 0.9", "run/last.pt contains no averaged weights: set run"),
    ("train run/config.yaml --out file/run", "file/run: Not a directory"),
    ("train run/config.yaml --out a --run.batch_size 99", "fewer training images than one batch of 99"),
    ("train run/config.yaml --out a --optimizer.lr 1e30", "the loss is nan in epoch 1, batch 2 of 6"),
    ("train run/config.yaml --out a --augmentation.rand_augment much", "rand_augment is 'much', but must be a policy"),
    ("train run/config.yaml --out a --preprocessing.mean 1,2", "1 or 3 means and the same number of std, not 2 and 3"),
    ("train run/config.yaml --out a --preprocessing.image_size 4", "4x4 pixels, smaller than one patch of 8x8"),
    # measuring
    ("test resnet packaged --data colours", "no recipe is called 'resnet'"),
    (f"test {PICO} packaged --data nowhere", "nowhere: no such folder"),
    (f"test {PICO} packaged --data flat", "images without class folders need a file val.txt with their labels"),
    (f"test {PICO} packaged --data colours", "colours has 3 classes, but the model's 10 classes do not include 'blau'"),
    (f"test {PICO} xcit-nano-12-p16 --data colours", "xcit-nano-12-p16_3rdparty_in1k does not fit xcit-pico-"),
    (f"test {PICO} packaged --data colours --protocol official", "is not an ImageNet recipe: the published protocols"),
    (f"test {PICO} empty --data colours", "empty is a folder, not a checkpoint"),
    (f"test {PICO} nowhere.pth --data colours", "cannot read nowhere.pth: no such file"),
    (f"test {PICO} headless.safetensors --data colours", "headless.safetensors: a backbone without a classifier"),
    ("test run/config.yaml run/model.safetensors --data colours --workers 0 --out file", "File exists"),
]  # fmt: skip

SEVERAL_LINES = [
    ("predict --model xcit-nano-12-p16", "cannot get the weights of xcit-nano-12-p16_3rdparty_in1k:"),
    (f"test {PICO} other.safetensors --data colours", "other.safetensors does not fit the model: "),
    (f"test {PICO} seven.safetensors --data colours", "The file has 7 classes, the model has 10"),
    ("predict --model gaps.pth", "gaps.pth does not fit the model: "),
]

USAGE = [
    ("", "Usage: xcit [OPTIONS] COMMAND [ARGS]..."),
    ("predikt a.png", "Error: no command 'predikt'; did you mean 'predict'?"),
    ("zzz", "Error: no command 'zzz'; there are: list, info, predict"),
    ("--verbose", "Error: No such option"),
    ("predict --modl a", "--model"),
    ("predict --topk 0", "0 is not in the range x>=1"),
    ("predict --batch-size many", "'many' is not a valid integer"),
    ("predict --dtype float64", "'float64' is not one of 'float32', 'bfloat16', 'float16'"),
    ("predict --model", "Error: Option '--model' requires an argument."),
    ("features a.png", "Error: Missing option '--out'."),
    ("features --out a.npz", "Error: Missing argument 'INPUT...'."),
    ("features a.png --out a.npz --layers last", "'last' is no list of block numbers such as -1 or 3,7,11"),
    ("convert a b --to onnx", "'onnx' is not one of 'xcit', 'official', 'timm', 'mmpretrain'"),
    ("info", "Error: Missing argument 'NAME'."),
    ("train", "Error: Missing argument 'RECIPE'"),
    (f"train --resume {PICO}", f"Error: Missing argument 'RECIPE'; {PICO} was read as the value of --resume: put"),
    (f"train --optimizer.lr 1 {PICO}", "Error: give RECIPE before the fields: --optimizer.lr is a field"),
    (f"train {PICO} --out", "Error: Option '--out' requires an argument."),
    (f"config {NANO} stray", "Error: 'stray' is not of the form --FIELD VALUE"),
    (f"config {NANO} --optimizer.lr", "Error: --optimizer.lr needs a value"),
]


@pytest.fixture
def files_before(tmp_path):
    return snapshot(tmp_path)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Returns the contents of all files in the working folder and in its folder `run`, by path."""
    files = [path for path in (*folder.iterdir(), *(folder / "run").iterdir()) if path.is_file()]
    return {str(path): path.read_bytes() for path in files}


@pytest.mark.parametrize(("command", "message"), ONE_LINE, ids=[command for command, _ in ONE_LINE])
def test_mistake_is_told_in_one_line(xcit, command, message, files_before, tmp_path):
    done = xcit(*command.split())
    if isinstance(message, tuple):  # `fetch` continues with the other names, and says at the end that some failed
        assert (done.status, done.err) == (1, f"{message[0]}\n")
        return
    assert done.status == 2
    # `xcit test` has printed its first lines before it finds that results can't be written.
    notes = done.err.splitlines(keepends=True)[:-1] if done.out else []
    error = done.err.removeprefix("".join(notes))
    assert error.startswith("xcit: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert error.endswith("\n")
    assert snapshot(tmp_path) == files_before, "nothing is written, nothing half-written is left"


@pytest.mark.parametrize(("command", "message"), SEVERAL_LINES, ids=[command for command, _ in SEVERAL_LINES])
def test_mistake_that_needs_more_lines(xcit, command, message, files_before, tmp_path):
    done = xcit(*command.split())
    assert done.status == 2
    assert done.err.startswith("xcit: error: ")
    assert message in done.err
    assert 2 <= done.err.count("\n") <= 14
    assert "Traceback" not in done.err
    assert snapshot(tmp_path) == files_before


@pytest.mark.parametrize(("command", "message"), USAGE, ids=[command for command, _ in USAGE])
def test_usage(xcit, command, message):
    done = xcit(*command.split())
    assert (done.status, done.out) == (2, "")
    assert message in done.err
    assert "Traceback" not in done.err


# Since Python 3.12, there is a warning when a process with threads forks, as torch's data loader does.
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


@forks
def test_more_unreadable_training_images_than_allowed(xcit, colours, tmp_path):
    shutil.copytree(colours, tmp_path / "data")
    (tmp_path / "data" / "rot" / "3.png").write_text("text")
    reason = "data/rot/3.png: not an image that can be read (it looks like text)"
    for num_workers in (0, 1):
        out = f"out{num_workers}"
        done = xcit("train", "run/config.yaml", "--data", "data", "--out", out, "--run.num_workers", num_workers)
        assert done.status == 2
        assert done.err == (
            "xcit: error: 1 of 30 training images can't be read, more than run.max_unreadable 0.01 allows; "
            f"one is {reason}; all are listed in {out}/unreadable.txt\n"
        )
        assert Path(out, "unreadable.txt").read_text(encoding="utf-8") == f"{reason}\n"


@forks
def test_image_that_can_not_be_scaled_is_left_out_of_the_measurement(xcit, colours, tmp_path):
    shutil.copytree(colours, tmp_path / "data")
    Image.new("L", (1, 700_000)).save(tmp_path / "data" / "rot" / "hair.png")
    for num_workers in (0, 1):
        done = xcit("test", "run/config.yaml", "run/model.safetensors", "--data", "data", "--workers", num_workers)
        assert done.status == 1
        assert done.err.splitlines() == [
            "3 classes: blau, grün, rot; 31 images in data",
            "warning: data has no folder val: all its images are measured, and the model may have been trained on "
            "them; to measure only images that the model was not trained on, give the holdout of its training run",
            "xcit: data/rot/hair.png: an image of 1 x 700000 pixels is too elongated to scale its short side to 16",
            "xcit: model run/model.safetensors (3 classes)",
            "xcit: 1 images could not be read and were not measured",
        ]
    assert json.loads(Path("runs/test/run/report.json").read_text(encoding="utf-8"))["num_images"] == 30


def test_hostile_pickle_is_not_run(xcit):
    for command in ("predict --model", "verify"):
        assert xcit(*command.split(), "hostile.pth").status == 2
    assert not Path("was-run").exists()
