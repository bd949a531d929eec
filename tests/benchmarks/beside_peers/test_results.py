import json

import pytest
from beside_peers import BenchResult

from xcit.errors import XCiTError


def test_json_there_and_back_is_the_same(result: BenchResult) -> None:
    assert BenchResult.from_json(result.to_json()) == result


def test_json_has_the_figures_by_name(result: BenchResult) -> None:
    content = json.loads(result.to_json())
    first, other = content["models"][0]["sizes"][0]["measurements"]
    assert (first["contender"], first["ratio"]) == ("xcit", None)
    assert (other["contender"], other["ratio"], other["ratio_quartiles"]) == ("timm", 2.0, [1.9, 2.1])
    assert content["machine"]["matrix_peak"] == 123.4e9


def test_json_of_something_else_is_an_error(result: BenchResult) -> None:
    content = json.loads(result.to_json())
    content["models"][0]["sizes"][0]["image_size"] = "large"
    with pytest.raises(XCiTError, match="image_size must be of type int, not 'large'"):
        BenchResult.from_json(json.dumps(content))
    with pytest.raises(XCiTError, match="machine is missing"):
        BenchResult.from_json("{}")
