"""`xcit max-size`: shows the largest image that a model can process in a given amount of memory."""

import click


@click.command()
@click.argument("model")
@click.option(
    "--memory",
    metavar="SIZE",
    help="Memory in addition to the loaded model, such as 24GB; by default half of the free memory.",
)
def max_size(model: str, memory: str | None) -> None:
    """Print the largest square image that MODEL (a name or a file) can process in a given amount of memory.

    The command prints two sizes. For the first size, all tokens stay in memory. For the second size, tokens are written
    to scratch files. Both sizes are computed from the memory plan of --full-size, in float32 on the CPU. Nothing is
    downloaded, and the model is not run.
    """
    from xcit.models.xcit import FusedXCiT
    from xcit.streaming import Place, as_budget, format_size, largest_square
    from xcit.zoo import get_xcit

    network = get_xcit(model, pretrained=False).fuse()
    assert isinstance(network, FusedXCiT)
    bound = as_budget(memory).bound()
    click.echo(f"{model} in {format_size(bound)} of memory in addition to the loaded model, 8-bit RGB, float32:")
    places: tuple[tuple[Place, str], ...] = (("device", "whole"), ("scratch", "streamed"))
    for place, words in places:
        side, plan = largest_square(network, bound, place=place)
        scratch = f", {format_size(plan.scratch_bytes)} of scratch files" if plan.scratch_bytes else ""
        click.echo(f"  {words:8}  {side:,} x {side:,} pixels, {plan.grid[0] * plan.grid[1]:,} tokens{scratch}")
