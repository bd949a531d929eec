"""`xcit train` and `xcit config`: recipes."""

from pathlib import Path

import click

from xcit.errors import XCiTError


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("recipe")
@click.option("--data", help="A folder of images by class, or a known name such as fashion-mnist.")
@click.option("--out", type=click.Path(path_type=Path), help="The run's folder; runs/RECIPE if left out.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in the run's folder.")
@click.option("--device", help="cpu, cuda, cuda:1, ...; a GPU if there is one, else cpu.")
@click.argument("changes", nargs=-1, type=click.UNPROCESSED, metavar="[--FIELD VALUE]...")
def train(
    recipe: str, data: str | None, out: Path | None, resume: bool, device: str | None, changes: tuple[str, ...]
) -> None:
    """Train by RECIPE: a name, or a run's config.yaml.

    Any field of its config can be set by its dotted name, as in --schedule.epochs 10; `xcit config RECIPE` shows them.
    """
    try:
        import timm  # noqa: F401 - asked for before anything is read
    except ImportError:
        raise XCiTError("training needs timm: pip install 'xcit[train]'") from None
    from xcit.cli.options import checked_device
    from xcit.engine.config import override
    from xcit.engine.train import Progress
    from xcit.inference import default_device
    from xcit.recipes import get_recipe
    from xcit.training import train as train_recipe

    config = override(get_recipe(recipe), _pairs(changes) | ({"data": data} if data else {}))
    directory = out or Path("runs") / config.name
    place = checked_device(device) or default_device()

    def report(progress: Progress) -> None:
        if progress.figures is not None:
            figures = ", ".join(f"{name} {value:.3f}" for name, value in progress.figures.items())
            click.echo(
                f"epoch {progress.epoch + 1}/{progress.num_epochs}: loss {progress.loss:.3f}, {figures}, "
                f"{progress.images_per_second:.0f} images/s"
            )

    click.echo(
        f"{config.name}: {config.schedule.epochs} epochs, batch {config.run.batch_size}, "
        f"learning rate {config.optimizer.lr:g}, on {place}; files in {directory}"
    )
    train_recipe(config, directory, resume=resume, device=place, report=report)
    click.echo(f"weights: {directory / 'model.safetensors'}")


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("recipe")
@click.argument("changes", nargs=-1, type=click.UNPROCESSED, metavar="[--FIELD VALUE]...")
def config(recipe: str, changes: tuple[str, ...]) -> None:
    """Print the full config of RECIPE, as YAML."""
    import yaml

    from xcit.engine.config import override, to_dict
    from xcit.recipes import get_recipe

    click.echo(yaml.safe_dump(to_dict(override(get_recipe(recipe), _pairs(changes))), sort_keys=False), nl=False)


def _pairs(changes: tuple[str, ...]) -> dict[str, str]:
    """`--a.b 1` or `--a.b=1` to {"a.b": "1"}."""
    pairs: dict[str, str] = {}
    words = list(changes)
    while words:
        name = words.pop(0)
        if not name.startswith("--"):
            raise click.UsageError(f"{name!r} is no --FIELD VALUE")
        name, equals, value = name[2:].partition("=")
        if not equals:
            if not words:
                raise click.UsageError(f"--{name} needs a value")
            value = words.pop(0)
        pairs[name] = value
    return pairs
