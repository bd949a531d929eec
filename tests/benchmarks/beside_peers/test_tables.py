from collections.abc import Callable

import pytest
from beside_peers import BenchResult, markdown
from beside_peers.tables import growth_lines, headers, heading, rows

from xcit.measure.clock import flops_per_second, three_digits


def test_rows_have_a_cell_for_each_header(make_result: Callable[..., BenchResult]) -> None:
    for result in (make_result(), make_result(memory=False)):
        groups = rows(result, result.models[0])
        assert [len(group) for group in groups] == [2, 2]
        assert {len(row) for group in groups for row in group} == {len(headers(result))}
        assert ("peak MB/image" in headers(result)) == any("1.96" in row for row in groups[0])


def test_a_row_says_which_way_the_ratio_goes(result: BenchResult) -> None:
    first, other = (dict(zip(headers(result), row, strict=True)) for row in rows(result, result.models[0])[1])
    assert (first["contender"], first["xcit is faster by"], first["quartiles"]) == ("xcit", "", "")
    assert other == {
        "px": "448",
        "tokens": "784",
        "contender": "timm",
        "ms/image": "157",
        "xcit is faster by": "2.00x",
        "quartiles": "1.90-2.10",
        "peak MB/image": "22.0",
        "of peak": "46%",
        "difference": "3e-07",
    }


def test_heading_names_machine_versions_and_settings(make_result: Callable[..., BenchResult]) -> None:
    machine, settings = heading(make_result())
    assert machine == "Some CPU, 2 threads; Python 3.11.7, torch 2.9.0"
    assert settings == "inference, float32, batch 1, 3 rounds; matrix products reach 123.4 GFLOP/s"
    assert heading(make_result(train=True))[1].startswith("training step (forward, loss, backward), float32")


def test_growth_where_there_are_two_sizes(make_result: Callable[..., BenchResult]) -> None:
    assert growth_lines(make_result().models[0]) == [
        "xcit: time as tokens^1.00, memory as tokens^1.00",
        "timm: time as tokens^1.00, memory as tokens^1.50",
    ]
    assert growth_lines(make_result(memory=False).models[0])[1] == "timm: time as tokens^1.00"
    assert growth_lines(make_result(sizes=(224,)).models[0]) == []


def test_markdown(result: BenchResult) -> None:
    lines = markdown(result).splitlines()
    start = lines.index("### small-12-p16")
    table = lines[start + 2 : start + 8]
    assert {line.count("|") for line in table} == {10}
    assert table[0].startswith("| px | tokens | contender | ms/image | xcit is faster by | quartiles |")
    assert table[1].startswith("| ---: | ---: | --- | ---: |")
    assert table[3] == "| 224 | 196 | timm | 39.2 | 2.00x | 1.90-2.10 | 2.74 | 46% | 3e-07 |"
    assert "- timm: time as tokens^1.00, memory as tokens^1.50" in lines
    assert lines[-2:] == [
        "- timm-compile at 224 px: InductorError: no compiler",
        "- timm-compile at 448 px: InductorError: no compiler",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.01234, "0.0123"), (1.5, "1.50"), (22.0, "22.0"), (99.94, "99.9"), (99.96, "100"), (1234.5, "1,234")],
)
def test_three_digits(value: float, text: str) -> None:
    assert three_digits(value) == text


def test_flops_per_second() -> None:
    assert flops_per_second(95.67e9) == "95.7 GFLOP/s"
    assert flops_per_second(790e12) == "790.0 TFLOP/s"
