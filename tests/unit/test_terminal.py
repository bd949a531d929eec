import io
import os
import pty
import sys

import pytest

from xcit.progress import progress_bar
from xcit.terminal import for_drawing, guard_terminal, tell

HOSTILE = "caf\u00e9\t\x1b[2J\x1b]0;title\x07\x9b31m\u202eend\n"
HARMLESS = "caf\u00e9\t\\x1b[2J\\x1b]0;title\\x07\\x9b31m\\u202eend\n"


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_terminal_gets_control_characters_escaped(name, monkeypatch):
    main, side = pty.openpty()
    terminal = os.fdopen(side, "w", encoding="utf-8", closefd=False)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(sys, name, terminal)
    monkeypatch.setattr(sys, f"__{name}__", terminal)
    guard_terminal()
    guard_terminal()  # a second call changes nothing
    assert sys.stdout.isatty() == (name == "stdout")
    getattr(sys, name).write(HOSTILE)
    getattr(sys, name).flush()
    assert os.read(main, 1000).decode() == HARMLESS.replace("\n", "\r\n")
    assert for_drawing(getattr(sys, name)) is terminal  # a progress bar's sequences are not escaped
    getattr(sys, name).detach()
    os.close(side)
    os.close(main)


@pytest.mark.parametrize("guarded", [True, False])
def test_prints_beside_a_bar_are_escaped_too(guarded, monkeypatch):
    main, side = pty.openpty()
    terminal = os.fdopen(side, "w", encoding="utf-8", closefd=False)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, terminal)
        monkeypatch.setattr(sys, f"__{name}__", terminal)
    monkeypatch.setenv("TERM", "xterm")
    if guarded:
        guard_terminal()
    before = sys.stdout, sys.stderr
    with progress_bar(f"[/b]{HOSTILE.strip()}", 3) as bar:
        bar.advance(1)
        for stream in (sys.stdout, sys.stderr):
            print(HOSTILE, file=stream, flush=True)
            assert stream.encoding == "utf-8" and stream.isatty()
    assert (sys.stdout, sys.stderr) == before
    tell(HOSTILE)
    sys.stdout.flush()
    shown = os.read(main, 100_000).decode()
    assert shown.count("\\x1b]0;title\\x07\\x9b31m\\u202eend") >= 3
    assert not any(mark in shown for mark in ("\x1b]0;", "\x1b[2J", "\x07", "\x9b", "\u202e"))
    if guarded:
        for guard in before:
            getattr(guard, "detach")()  # noqa: B009  (not every text stream has `detach`)
    os.close(side)
    os.close(main)


def test_files_and_pipes_get_what_was_written(monkeypatch, tmp_path):
    with (tmp_path / "out").open("w", encoding="utf-8") as file:
        monkeypatch.setattr(sys, "stdout", file)
        guard_terminal()
        assert sys.stdout is file is for_drawing(file)
        sys.stdout.write(HOSTILE)
    assert (tmp_path / "out").read_text(encoding="utf-8") == HOSTILE
