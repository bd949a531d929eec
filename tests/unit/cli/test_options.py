import click
import pytest
from click.testing import CliRunner

from xcit.cli.options import CommandWithNumbers, numbers


@click.command(cls=CommandWithNumbers)
@click.argument("name")
@click.option("--k", "ks", callback=numbers(int), metavar="K...")
@click.option("--lr", "lrs", callback=numbers(float), metavar="LR...", default="0.5")
@click.option("--size", type=int)
def command(name: str, ks: tuple[int, ...] | None, lrs: tuple[float, ...], size: int | None) -> None:
    click.echo(f"{name} {ks} {lrs} {size}")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("a", "a None (0.5,) None"),
        ("a --k 10", "a (10,) (0.5,) None"),
        ("a --k 10 20 100", "a (10, 20, 100) (0.5,) None"),
        ("--k 10 20 a --lr 1e-3 .5 --size 3", "a (10, 20) (0.001, 0.5) 3"),
        ("--k=10 20 a", "a (10, 20) (0.5,) None"),
        ("--k 10,20 30 a", "a (10, 20, 30) (0.5,) None"),
        ("--size 3 a --lr 2 --k 1", "a (1,) (2.0,) 3"),
        ("--k 1 --k 2 3 a", "a (2, 3) (0.5,) None"),
        ("--k -1 -2 a", "a (-1, -2) (0.5,) None"),
    ],
)
def test_an_option_takes_all_the_numbers_that_follow(words: str, expected: str) -> None:
    done = CliRunner().invoke(command, words.split())
    assert (done.exit_code, done.output) == (0, f"{expected}\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("a --k ten", "'ten' is no list of whole numbers such as 1 2 or 1,2"),
        ("a --k 1 2.5", "'1,2.5' is no list of whole numbers"),
        ("a --k 1,,2", "'1,,2' is no list of whole numbers"),
        ("a --lr fast", "'fast' is no list of numbers such as 1 2 or 1,2"),
        ("a --k", "Option '--k' requires an argument."),
        ("a --size 1 2", "Got unexpected extra argument (2)"),
        ("a --k 1 b", "Got unexpected extra argument (b)"),
    ],
)
def test_what_is_no_number_is_told(words: str, message: str) -> None:
    done = CliRunner().invoke(command, words.split())
    assert done.exit_code == 2
    assert message in done.output
