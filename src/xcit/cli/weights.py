"""`xcit fetch`, `xcit convert` and `xcit verify`: weights as files."""

from pathlib import Path

import click

from xcit.cli.lines import say
from xcit.cli.options import file_with_key

FORMATS = ("xcit", "official", "timm", "mmpretrain", "dino", "mmseg", "mmdet")


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option(
    "--to", "folder", type=click.Path(path_type=Path), help="A folder that can serve as XCIT_MIRROR elsewhere."
)
def fetch(names: tuple[str, ...], folder: Path | None) -> int:
    """Download weights to the cache or to a folder. NAME may be a pattern, as in `xcit list`."""
    from xcit.cli import SOME_FAILED
    from xcit.cli.progress import download_bar
    from xcit.errors import XCiTError
    from xcit.zoo import fetch as fetch_one
    from xcit.zoo import find_record, list_models

    wanted = [
        found for name in names for found in (list_models(name) if set("*?[") & set(name) else [find_record(name).name])
    ]
    if not wanted:
        raise XCiTError(f"no model matches {' or '.join(map(repr, names))}; `xcit list` shows all")
    num_failed = 0
    for name in dict.fromkeys(wanted):
        try:
            with download_bar() as downloaded:
                path = fetch_one(name, folder, progress=downloaded)
        except XCiTError as error:
            num_failed += 1
            click.echo(f"xcit: {error}", err=True)
        else:
            click.echo(f"{name}: {path}")
    return SOME_FAILED if num_failed else 0


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("destination", type=click.Path(path_type=Path))
@click.option("--to", "to", type=click.Choice(FORMATS), required=True, help="Format of the tensors' names.")
@click.option("--key", help="Which weights of SOURCE, if it has several sets, such as student in a DINO file.")
@click.option("--overwrite", is_flag=True, help="Replace DESTINATION if it exists.")
def convert(source: Path, destination: Path, to: str, key: str | None, overwrite: bool) -> None:
    """Write the checkpoint SOURCE in another format as DESTINATION, with identical values.

    The names of its tensors tell the format of SOURCE. DESTINATION ends in .safetensors or .pth.
    """
    from xcit.zoo import convert as convert_file

    stored = convert_file(source, destination, to, key=key, overwrite=overwrite)
    num_tensors = len(stored.state if stored.set_aside else stored.whole)
    click.echo(f"{source} ({stored.format}) -> {destination} ({to}): {num_tensors} tensors")
    if stored.set_aside:
        click.echo(
            f"left out, because they are not part of the classifier: {', '.join(stored.set_aside[:5])}, "
            f"{len(stored.set_aside)} in all"
        )


@click.command()
@click.argument("name_or_path")
@click.option("--key", metavar="KEY", help="Which weights to check, if the file has several sets.")
def verify(name_or_path: str, key: str | None) -> None:
    """Check a model of the zoo or a file: digest, names and shapes, finite values, parameter count."""
    from xcit.cli.progress import download_bar
    from xcit.zoo import verify as verify_file

    with download_bar() as downloaded:
        verified = verify_file(file_with_key(name_or_path, key), progress=downloaded)
    rows = [
        ("file", str(verified.path)),
        ("format", verified.format),
        ("digest", f"{verified.digest} ({'as recorded in the file' if verified.recorded else 'none is recorded'})"),
        ("names, shapes", f"{verified.num_tensors} tensors, as {verified.architecture} has them"),
        ("values", "all finite"),
        ("parameters", f"{verified.params:,}"),
    ]
    for label, value in rows:
        say(f"{label:14s} {value}", indent=15)
