"""The report of a streamed run."""

from dataclasses import dataclass

from xcit.streaming.budget import format_size
from xcit.streaming.plan import Plan

_PLACES = {"device": "memory", "host": "host memory", "scratch": "scratch files"}


@dataclass(frozen=True, kw_only=True)
class Report:
    """The plan of a run, its duration, and its use of memory and disk.

    Attributes:
        height: number of rows of pixels.
        width: number of pixels per row.
        plan: the plan that was followed.
        passes: number of passes over the tokens, including the one that embeds the image.
        resumed_from: number of passes that an earlier run had finished.
        seconds: duration.
        peak_bytes: resident memory in addition to that at the start; None if the system does not report it.
        bytes_read: bytes read from scratch files.
        bytes_written: bytes written to scratch files.
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
        """Returns one line for the user."""
        words = [f"{self.width} x {self.height} pixels", f"{self.passes} passes, tokens in {_PLACES[self.plan.place]}"]
        if self.resumed_from:
            words.append(f"went on after pass {self.resumed_from}")
        if self.peak_bytes is not None:
            words.append(f"{format_size(self.peak_bytes)} of memory at most")
        if self.bytes_written:
            words.append(f"{format_size(self.bytes_read)} read and {format_size(self.bytes_written)} written")
        words.append(f"{self.height * self.width / 1e6 / self.seconds:.2f} megapixels per second")
        return ", ".join(words)
