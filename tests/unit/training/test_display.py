import io
from dataclasses import replace

import pytest
from rich.console import Console, RenderableType

from xcit.training.display import RunDisplay, duration, epoch_line, run_display, run_panel, seconds_left, steps_of_run
from xcit.training.engine.progress import Progress

START = Progress(
    epoch=0, num_epochs=3, step=1, num_steps=10, loss=2.3456, lr=1e-3, images_per_second=123.4, data_wait=0.034
)
FIGURES = {"top1": 91.25, "val_loss": 0.5}


def at(epoch: int, step: int, **changes: object) -> Progress:
    return replace(START, epoch=epoch, step=step, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-:--:--"),
        (0.2, "0:00:00"),
        (59.6, "0:01:00"),
        (3725, "1:02:05"),
        (86399, "23:59:59"),
        (3 * 86400 + 3661, "3 d 1:01:01"),
    ],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_time_left_is_at_the_pace_so_far() -> None:
    assert seconds_left(10, 50, 20.0) == 100.0
    assert seconds_left(10, 0, 20.0) == 0.0
    assert seconds_left(0, 50, 20.0) is None


def test_steps_of_the_run() -> None:
    assert steps_of_run(START) == (1, 30)
    assert steps_of_run(at(2, 10)) == (30, 30)


def test_line_of_an_epoch() -> None:
    assert epoch_line(at(1, 10), 75.0) == ("epoch 2/3: loss 2.346, 123 images/s, 3% waiting for data, 0:01:15 left")
    assert epoch_line(at(2, 10, figures=FIGURES), 0.0) == (
        "epoch 3/3: loss 2.346, top1 91.250, val_loss 0.500, 123 images/s, 3% waiting for data"
    )


@pytest.mark.parametrize("width", [30, 80, 120])
def test_panel(width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    with console.capture() as captured:
        console.print(run_panel(at(1, 5), 61, None))
    words = captured.get().split()
    for word in ("2/3", "5/10", "2.346", "1.00e-03", "123", "3%", "50%"):
        assert word in words
    if width >= 80:
        assert "0:01:01 passed, -:--:-- left" in captured.get()
        assert captured.get().count("\n") == 2


class Seen:
    """A display and its output; the display's clock advances by `seconds` per report."""

    def __init__(self, seconds: float = 1.0) -> None:
        self.now, self.seconds = 0.0, seconds
        self.lines: list[str] = []
        self.panels: list[RenderableType] = []
        self.display = RunDisplay("heading", say=self.lines.append, draw=self.panels.append, clock=lambda: self.now)

    def report(self, *reports: Progress) -> None:
        for progress in reports:
            self.now += self.seconds
            self.display.report(progress)


def test_the_heading_comes_first_and_not_before_there_is_something_to_say() -> None:
    seen = Seen()
    assert seen.lines == []
    seen.display.announce("global batch 8")
    seen.display.announce("warning")
    assert seen.lines == ["heading", "global batch 8", "warning"]


def test_a_line_an_epoch_with_or_without_figures() -> None:
    seen = Seen()
    seen.report(at(0, 5), at(0, 10), at(1, 5), at(1, 10), at(1, 10, figures=FIGURES), at(2, 5), at(2, 10))
    seen.report(at(2, 10, figures=FIGURES))
    assert [line.partition(":")[0] for line in seen.lines] == ["heading", "epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert ["top1" in line for line in seen.lines[1:]] == [False, True, True]


def test_time_left_counts_from_where_a_resumed_run_began() -> None:
    seen = Seen(seconds=2.0)
    seen.report(at(1, 4), at(1, 6), at(1, 8), at(1, 10), at(1, 10, figures=FIGURES))
    # Six steps took eight seconds, including the evaluation; ten steps remain.
    assert seen.lines[-1].endswith(", 0:00:13 left")


def test_the_panel_is_drawn_a_few_times_a_second_at_most() -> None:
    fast = Seen(seconds=0.02)
    fast.report(*(at(epoch, step) for epoch in range(3) for step in range(1, 11)))
    assert 2 <= len(fast.panels) <= 4
    slow = Seen(seconds=1)
    slow.report(*(at(0, step) for step in range(1, 11)))
    assert len(slow.panels) == 10


def test_without_a_terminal_there_are_lines_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with run_display("heading") as display:
        display.report(at(0, 10, figures=FIGURES))
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "heading",
        "epoch 1/3: loss 2.346, top1 91.250, val_loss 0.500, 123 images/s, 3% waiting for data, -:--:-- left",
    ]
    assert printed.err == ""
