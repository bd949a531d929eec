"""How a streamed pass went."""

from dataclasses import dataclass

from xcit.streaming.budget import format_size
from xcit.streaming.plan import Plan

_PLACES = {"device": "memory", "host": "host memory", "scratch": "scratch files"}


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a run did.

    Attributes:
        height: rows of pixels.
        width: pixels a row.
        plan: by which it went through.
        passes: over the tokens, the one that embeds the image included.
        resumed_from: passes that an earlier run had finished.
        seconds: that it took.
        peak_bytes: of resident memory above what there was before; none where the system does not say.
        bytes_read: from scratch files.
        bytes_written: to scratch files.
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
        """One line for a person."""
        words = [f"{self.width} x {self.height} pixels", f"{self.passes} passes, tokens in {_PLACES[self.plan.place]}"]
        if self.resumed_from:
            words.append(f"went on after pass {self.resumed_from}")
        if self.peak_bytes is not None:
            words.append(f"{format_size(self.peak_bytes)} of memory at most")
        if self.bytes_written:
            words.append(f"{format_size(self.bytes_read)} read and {format_size(self.bytes_written)} written")
        words.append(f"{self.height * self.width / 1e6 / self.seconds:.2f} megapixels a second")
        return ", ".join(words)
