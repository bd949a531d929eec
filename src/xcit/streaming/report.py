"""The report of a streamed run."""

from dataclasses import dataclass

from xcit.streaming.budget import format_size
from xcit.streaming.plan import Plan

_PLACES = {"device": "memory", "host": "host memory", "scratch": "scratch files"}


@dataclass(frozen=True, kw_only=True)
class Report:
    """The plan of a run, its duration, and its use of memory and disk.

    Attributes:
        height: height of the image in pixels.
        width: width of the image in pixels.
        plan: the plan of the run.
        passes: number of passes over the tokens, including the pass that embeds the image.
        resumed_from: number of passes that an earlier run had finished; 0 if the run was not resumed.
        seconds: duration of the run in seconds.
        peak_bytes: peak of the resident memory minus the resident memory at the start, in bytes; None if the system
            does not report its memory.
        bytes_read: number of bytes read from scratch files.
        bytes_written: number of bytes written to scratch files.
    """

    height: int
    width: int
    plan: Plan
    passes: int
    resumed_from: int
    seconds: float
    peak_bytes: int | None
    bytes_read: int
    bytes_written: int

    def line(self) -> str:
        """Returns the report as one line of text for the user."""
        words = [f"{self.width} x {self.height} pixels", f"{self.passes} passes, tokens in {_PLACES[self.plan.place]}"]
        if self.resumed_from:
            words.append(f"resumed after pass {self.resumed_from}")
        if self.peak_bytes is not None:
            words.append(f"{format_size(self.peak_bytes)} of memory at most")
        if self.bytes_written:
            words.append(f"{format_size(self.bytes_read)} read and {format_size(self.bytes_written)} written")
        words.append(f"{self.height * self.width / 1e6 / self.seconds:.2f} megapixels per second")
        return ", ".join(words)
