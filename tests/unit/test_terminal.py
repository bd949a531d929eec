import io
import os
import pty
import sys

import pytest

from xcit.terminal import for_drawing, guard_terminal

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
    guard_terminal()  # once is enough
    assert sys.stdout.isatty() == (name == "stdout")
    getattr(sys, name).write(HOSTILE)
    getattr(sys, name).flush()
    assert os.read(main, 1000).decode() == HARMLESS.replace("\n", "\r\n")
    assert for_drawing(getattr(sys, name)) is terminal  # those of a progress bar are not
    getattr(sys, name).detach()
    os.close(side)
    os.close(main)


def test_files_and_pipes_get_what_was_written(monkeypatch, tmp_path):
    with (tmp_path / "out").open("w", encoding="utf-8") as file:
        monkeypatch.setattr(sys, "stdout", file)
        guard_terminal()
        assert sys.stdout is file is for_drawing(file)
        sys.stdout.write(HOSTILE)
    assert (tmp_path / "out").read_text(encoding="utf-8") == HOSTILE
