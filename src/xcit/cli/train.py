"""`xcit train` and `xcit config`: train models with recipes, and print the configs of recipes."""

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xcit.cli.lines import say
from xcit.cli.processes import STOPPED, is_main, one_voice
from xcit.errors import XCiTError
from xcit.extras import need_packages

if TYPE_CHECKING:
    from xcit.training.engine.progress import Stopped
    from xcit.training.tasks.table import TrainingConfig

_OPTIONS = ("data", "out", "resume", "device")

_TRAIN_HELP = """Train a model with RECIPE: a name (`xcit config` lists the names), or a run's config.yaml.

Any field of the config can be set by its dotted name, as in --schedule.epochs 10. `xcit config RECIPE` prints all
fields.

\b
The run's folder gets
  config.yaml        all fields of the config; it can be used as RECIPE
  log.jsonl          a line for every epoch, and for some of the steps
  curves.png         loss, metrics and learning rate over the epochs
  last.pt            the latest checkpoint, for --resume
  best.pt            the checkpoint with the best metric
  step-*.pt          the latest N checkpoints, with --run.keep_checkpoints N
  model.safetensors  the last weights, for `xcit predict --model`; for a DINO
                     run the teacher's backbone, for `xcit features --model`
  best.safetensors   the weights with the best metric
  model-adapter      with --lora.rank N, instead of model.safetensors: only
                     the LoRA weights
  best-adapter       with --lora.rank N, instead of best.safetensors
  unreadable.txt     images that could not be read, if there were any

\b
With several GPUs or machines, torchrun starts a process for each GPU, and
run.batch_size is the batch size of all processes together:
  torchrun --nproc-per-node 8 -m xcit train RECIPE --data DIR

\b
Exit status:
  0    the training finished
  2    a mistake of the user, or a run that can't continue; one line says
       what to do
  75   the run was stopped by SIGTERM or SIGINT (Ctrl-C) and was saved;
       --resume continues the run
  130  the run was stopped by Ctrl-C before the training began, or by a
       second Ctrl-C; it was not saved
"""


@click.command(help=_TRAIN_HELP, context_settings={"ignore_unknown_options": True})
@click.argument("recipe", required=False, metavar="RECIPE")
@click.option("--data", metavar="DATA", help="Folder of the data set, or a known name such as fashion-mnist.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of the run; by default the folder of RECIPE if RECIPE is a run's config.yaml, else runs/NAME.",
)
@click.option(
    "--resume",
    is_flag=False,
    flag_value="auto",
    metavar="[auto|PATH]",
    help="Resume a run. Without a value, or with auto, continue from the last checkpoint in the run's folder; if there "
    "is no checkpoint, start a new run. With PATH, continue from this checkpoint, or from the last checkpoint in this "
    "folder.",
)
@click.option("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, ...; by default a GPU if there is one, else cpu.")
@click.argument("changes", nargs=-1, type=click.UNPROCESSED, metavar="[--FIELD VALUE]...")
@one_voice()
def train(
    recipe: str | None,
    data: str | None,
    out: Path | None,
    resume: str | None,
    device: str | None,
    changes: tuple[str, ...],
) -> int:
    """Trains a model, and returns the exit status."""
    need_packages("training", "timm")
    if recipe is None:
        taken = (
            f"; {resume} was read as the value of --resume: put RECIPE first" if resume not in (None, "auto") else ""
        )
        raise click.UsageError(f"Missing argument 'RECIPE'{taken}")
    config = _config(recipe, _pairs(recipe, changes) | ({"data": data} if data else {}), _OPTIONS)
    from xcit.cli.options import checked_device
    from xcit.training.engine.progress import Stopped
    from xcit.training.run import train as train_recipe
    from xcit.training.tasks.table import TASKS

    path = Path(recipe)
    directory = out or (path.parent if path.name == "config.yaml" else Path("runs") / config.name)
    if not config.data:
        images = TASKS[config.task].images
        raise XCiTError(f"{config.name} has no data of its own: give a folder of {images} with --data")
    try:
        figures = train_recipe(config, directory, resume=resume, device=checked_device(device))
    except Stopped as stopped:
        if is_main():
            _print_stop(stopped, directory, device)
        return STOPPED
    if is_main():
        _print_result(directory, figures, config.task)
    return 0


def _print_stop(stopped: "Stopped", directory: Path, device: str | None) -> None:
    again = ["xcit", "train", str(directory / "config.yaml"), "--resume", *(("--device", device) if device else ())]
    saved = f"xcit: stopped by {stopped.signal}, saved in {stopped.checkpoint}; resume with: {shlex.join(again)}"
    say(saved, err=True, indent=2)


def _print_result(directory: Path, figures: dict[str, float], task: str) -> None:
    say(f"figures: {', '.join(f'{name} {value:.3f}' for name, value in figures.items())}")
    for what, name in (
        ("weights", "model.safetensors"),
        ("adapter", "model-adapter"),
        ("best weights", "best.safetensors"),
        ("best adapter", "best-adapter"),
        ("curves", "curves.png"),
    ):
        if (directory / name).exists():
            click.echo(f"{what}: {directory / name}")
    adapter, whole = directory / "model-adapter", directory / "model.safetensors"
    model = shlex.quote(str(adapter if adapter.exists() else whole))
    uses = {
        "classification": f"predict IMAGE... --model {model}",
        "multi-label": f"predict IMAGE... --model {model}",
        "dino": f"features IMAGE... --model {model} --out features.npz",
        "detection": f"detect IMAGE... --model {model} --out detections",
        "segmentation": f"segment IMAGE... --model {model} --out labels",
    }
    click.echo(f"use them: xcit {uses[task]}")


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("recipe", required=False)
@click.argument("changes", nargs=-1, type=click.UNPROCESSED, metavar="[--FIELD VALUE]...")
def config(recipe: str | None, changes: tuple[str, ...]) -> None:
    """Print the full config of RECIPE (a name or a run's config.yaml) as YAML. Without RECIPE, list the recipes.

    Any field can be set by its dotted name, as in --schedule.epochs 10, to see the config that `xcit train` would use.
    """
    if recipe is None:
        _list_recipes()
        return
    import yaml

    from xcit.config import to_dict

    click.echo(yaml.safe_dump(to_dict(_config(recipe, _pairs(recipe, changes))), sort_keys=False), nl=False)


def _list_recipes() -> None:
    from functools import partial
    from inspect import getdoc

    from xcit.training.recipes import RECIPES

    width = max(map(len, RECIPES))
    for name, recipe in RECIPES.items():
        text = getdoc(recipe.func if isinstance(recipe, partial) else recipe) or ""
        say(f"{name:{width}}  {''.join(text.splitlines()[:1])}".rstrip(), indent=4)


def _config(recipe: str, pairs: dict[str, str], options: tuple[str, ...] = ()) -> "TrainingConfig":
    """Returns the config of a recipe, with some fields changed.

    Args:
        recipe: a name or a run's config.yaml.
        pairs: text values by dotted name.
        options: the command's own options, for suggestions in error messages.
    """
    # Names may also be spelled like the options of other commands: --class-map, --class-weights, --ignore.
    pairs = {name.replace("-", "_"): value for name, value in pairs.items()}
    pairs = {"ignore_index" if name == "ignore" else name: value for name, value in pairs.items()}
    _check_names(pairs, options)
    from xcit.config import override
    from xcit.training.recipes import get_recipe

    return override(get_recipe(recipe), pairs)


def _check_names(names: Iterable[str], options: tuple[str, ...]) -> None:
    """Checks, before torch is imported, that each name is a field of at least one recipe.

    Raises:
        XCiTError: if a name is not a field of any recipe; the message suggests the nearest field or option.
    """
    from difflib import get_close_matches

    from xcit.cli.fields import FIELDS
    from xcit.config import nearest_field

    for name in names:
        if name in FIELDS:
            continue
        if "." not in name and (near := get_close_matches(name, options, n=1)):
            raise XCiTError(f"no option --{name}; did you mean --{near[0]}?")
        raise XCiTError(f"no config field {name!r}{nearest_field(name, FIELDS)}")


def _pairs(recipe: str, changes: tuple[str, ...]) -> dict[str, str]:
    """Converts `--a.b 1` or `--a.b=1` to {"a.b": "1"}."""
    if recipe.startswith("--"):
        raise click.UsageError(f"give RECIPE before the fields: {recipe} is a field")
    pairs: dict[str, str] = {}
    words = list(changes)
    while words:
        name = words.pop(0)
        if not name.startswith("--"):
            raise click.UsageError(f"{name!r} is not of the form --FIELD VALUE")
        name, equals, value = name[2:].partition("=")
        if not equals:
            if not words:
                raise click.UsageError(f"--{name} needs a value")
            value = words.pop(0)
        pairs[name] = value
    return pairs
