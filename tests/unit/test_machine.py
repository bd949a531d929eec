from xcit.machine import processor


def test_the_processor_has_a_name() -> None:
    assert processor().strip()
