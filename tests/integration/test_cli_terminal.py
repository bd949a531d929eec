"""Tests that lines are wrapped between words on a terminal of 80 columns, and are not wrapped in a pipe."""

import itertools
import json
import os
import pty
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from xcit import fetch
from xcit.cli import _VERBS

COMMANDS = (
    ("list",),
    ("list", "xcit-small-12-p8*"),
    ("info", "xcit_small_12_p8_224_dist"),
    ("config",),
    ("config", "xcit-pico-fashion-mnist"),
    ("verify", "packaged"),
    ("predict",),
    ("predict", "nowhere.png", "--model", "no-such-model"),
    ("config", "nonsense"),
    *((verb, "--help") for verb in _VERBS),
)
MARK = "=" * 20
CODE = f"""
import json, sys
from xcit.cli import main
for command in json.loads(sys.argv[1]):
    sys.argv = ["xcit", *command]
    try:
        main()
    except SystemExit:
        print("{MARK}", flush=True)
"""


def on_a_terminal(*commands: tuple[str, ...], columns: int = 80, kind: str = "dumb") -> list[str]:
    """Returns the text that a terminal shows for each command (standard output and error); all run in one process."""
    leader, follower = pty.openpty()
    environment = os.environ | {"COLUMNS": str(columns), "TERM": kind}
    command = [sys.executable, "-c", CODE, json.dumps(commands)]
    process = subprocess.Popen(command, stdout=follower, stderr=follower, stdin=subprocess.DEVNULL, env=environment)
    os.close(follower)
    shown = b""
    try:
        while part := os.read(leader, 65536):
            shown += part
    except OSError:  # the error on Linux after the other end was closed
        pass
    process.wait()
    os.close(leader)
    return shown.decode().replace("\r\n", "\n").split(f"{MARK}\n")[:-1]


@pytest.fixture(scope="module")
def shown() -> dict[tuple[str, ...], str]:
    """The output of each command on a terminal of 80 columns."""
    return dict(zip(COMMANDS, on_a_terminal(*COMMANDS), strict=True))


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_lines_fit_80_columns(shown, arguments):
    assert shown[arguments]
    long = [line for line in shown[arguments].splitlines() if len(line) > 80]
    assert [line for line in long if len(line.split()) > 1] == []


def test_a_list_is_a_table_where_there_is_room_and_in_a_pipe(xcit, shown):
    command = ("list", "xcit-small-12-p8*")
    piped = xcit(*command).out
    assert on_a_terminal(command, columns=120) == [piped]
    narrow = shown[command].splitlines()
    assert narrow[-2:] == [
        "xcit-small-12-p8_3rdparty_in1k",
        "  ImageNet-1k, px 224, top-1 official 83.4, top-1 mmpretrain 83.2",
    ]
    assert [line.split()[0] for line in piped.splitlines()[1:]] == narrow[::2]


def test_words_stay_whole_and_in_order(xcit, shown):
    command = ("info", "xcit_small_12_p8_224_dist")
    whole = xcit(*command).out
    assert whole.split() == shown[command].split()
    assert max(map(len, whole.splitlines())) > 80
    assert shown[command].count("\n") > whole.count("\n")


def test_names_reach_a_terminal_escaped_beside_a_bar_too(tmp_path):
    """Tests hostile names of files, classes, folders, models and results, in verbs with a progress bar."""
    hostile = "x\x1b]0;taken\x07\x1b[2J\u202e"
    for split, folder in itertools.product(("train", "val"), ("a", "b")):
        place = tmp_path / "data" / split / f"{folder}{hostile}"
        place.mkdir(parents=True)
        for number in range(2):
            Image.new("L", (28, 28), 40 * number).save(place / f"{number}{hostile}.png")
        (place / f"bad{hostile}.png").write_text("text")
        (place / f"other.{hostile}").write_text("text")
    shutil.copy(fetch("packaged"), tmp_path / f"m{hostile}.safetensors")
    data, model, out = str(tmp_path / "data"), str(tmp_path / f"m{hostile}.safetensors"), f"{tmp_path}/{hostile}"
    commands = (
        ("predict", data, "--model", model),
        ("predict", data, "--model", model, "--full-size"),
        ("predict", data, "--model", model, "--out", f"{out}/"),
        ("features", data, "--model", model, "--out", f"{out}.npz"),
        ("knn", model, "--data", data, "--k", "1", "--workers", "0", "--no-cache"),
        ("info", model),
        ("verify", model),
        ("train", "xcit-pico-fashion-mnist", "--data", hostile),
    )
    shown = on_a_terminal(*commands, kind="xterm")
    for command, text in zip(commands, shown, strict=True):
        assert "\\x1b]0;taken\\x07\\x1b[2J\\u202e" in text, command
        # None of these escape sequences is used by the progress bar.
        assert not any(mark in text for mark in ("\x1b]0;", "\x07", "\x1b[2J", "\u202e")), command
        assert "Traceback" not in text, command
