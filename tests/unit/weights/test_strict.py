import copy
from typing import Any

import pytest
import torch

from xcit.errors import XCiTError
from xcit.models import XCiT, XCiTConfig
from xcit.weights.strict import check_state, load_state, nonfinite


def model(**changes: Any) -> XCiT:
    return XCiT(XCiTConfig(**{"embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 10} | changes))


def error_of(into: XCiT, state: dict[str, torch.Tensor]) -> list[str]:
    before = copy.deepcopy(into.state_dict())
    with pytest.raises(XCiTError) as caught:
        load_state(into, state, "file.pth")
    assert all(torch.equal(tensor, before[name]) for name, tensor in into.state_dict().items()), "loaded in part"
    return str(caught.value).splitlines()


def test_loads_a_copy_and_every_value() -> None:
    source, target = model(), model()
    source.get_buffer("stem.0.norm.num_batches_tracked").fill_(2**40 + 1)
    state = source.state_dict()
    load_state(target, state, "file.pth")
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, state[name])
        assert tensor.data_ptr() != state[name].data_ptr()


def test_a_missing_counter_keeps_the_modules() -> None:
    source, target = model(), model()
    target.get_buffer("blocks.1.lpi.norm.num_batches_tracked").fill_(7)
    state = {name: t for name, t in source.state_dict().items() if not name.endswith("num_batches_tracked")}
    load_state(target, state, "file.pth")
    assert target.get_buffer("blocks.1.lpi.norm.num_batches_tracked") == 7
    assert torch.equal(target.get_parameter("head.weight"), source.get_parameter("head.weight"))


def test_keeps_the_modules_dtype() -> None:
    target = model()
    load_state(
        target, {name: t.half() if t.is_floating_point() else t for name, t in model().state_dict().items()}, "f"
    )
    assert target.head.weight.dtype == torch.float32


def test_names_and_shapes_that_differ_are_listed() -> None:
    state = dict(model().state_dict())
    del state["cls_token"]
    state["extra.weight"] = torch.zeros(3, 4)
    state["norm.bias"] = torch.zeros(17)
    lines = error_of(model(), state)
    assert lines == [
        "file.pth does not fit the model: 1 missing, 1 unexpected, 1 other shape",
        "  missing: cls_token 1x1x16",
        "  unexpected: extra.weight 3x4",
        "  other shape: norm.bias is 17, the model's is 16",
    ]


def test_a_long_list_is_cut() -> None:
    lines = error_of(model(depth=4), dict(model(embed_dim=32).state_dict()))
    assert len(lines) <= 12
    missing = int(lines[0].split(": ")[1].split()[0])
    shown = sum(line.startswith("  missing: ") for line in lines)
    assert f"  ... and {missing - shown} more missing" in lines
    only_missing = error_of(model(), {})
    assert len(only_missing) == 11


@pytest.mark.parametrize(
    ("file_classes", "model_classes", "words"),
    [
        (1000, 10, ["1000 classes", "the model has 10", "num_classes=1000", "reset_classifier(10)"]),
        (1000, 0, ["1000 classes", "the model has none", "num_classes=1000"]),
        (0, 10, ["no classifier", "num_classes=0", "reset_classifier(10)"]),
    ],
)
def test_another_number_of_classes_is_explained(file_classes: int, model_classes: int, words: list[str]) -> None:
    lines = error_of(model(num_classes=model_classes), dict(model(num_classes=file_classes).state_dict()))
    assert len(lines) == 4
    assert all(word in lines[-1] for word in words)


def test_the_advice_on_classes_works() -> None:
    state = model(num_classes=12).state_dict()
    target = model(num_classes=12)
    load_state(target, state, "file.pth")
    target.reset_classifier(10)
    assert target.eval()(torch.zeros(1, 3, 16, 16)).shape == (1, 10)


def test_no_advice_on_classes_where_they_are_not_what_differs() -> None:
    state = dict(model().state_dict())
    del state["head.bias"]
    assert len(error_of(model(), state)) == 2
    state = dict(model(num_classes=12).state_dict())
    del state["cls_token"]
    assert not any("num_classes" in line for line in error_of(model(), state))


def test_check_takes_plain_shapes() -> None:
    check_state({"a": (2, 3), "b": torch.Size([])}, {"a": torch.zeros(2, 3), "b": torch.tensor(1)}, "x")
    with pytest.raises(XCiTError, match="b is 1, the model's is scalar"):
        check_state({"b": ()}, {"b": torch.zeros(1)}, "x")


def test_nonfinite_names_the_tensors() -> None:
    state = {
        "good": torch.ones(3),
        "nan": torch.tensor([0.0, float("nan")]),
        "inf": torch.tensor(float("-inf"), dtype=torch.bfloat16),
        "count": torch.tensor(3),
        "empty": torch.zeros(0),
    }
    assert nonfinite(state) == ["nan", "inf"]
