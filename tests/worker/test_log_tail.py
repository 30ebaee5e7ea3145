"""The log's tail: whole lines, bounded, and text that every database keeps, whatever a trainer writes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from worker.log_tail import ATTEMPT_BYTES, PIECE_BYTES, next_lines


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "job_1-1.log"


def drain(log: Path, offset: int = 0) -> list[str]:
    """All pieces after `offset`, as at an attempt's end."""
    pieces = []
    while True:
        text, after = next_lines(log, offset, ended=True)
        if after == offset:
            return pieces
        pieces, offset = [*pieces, text], after


def test_only_whole_lines_are_given_until_the_end(log: Path) -> None:
    log.write_bytes(b"one\ntwo\nthr")
    assert next_lines(log, 0) == ("one\ntwo\n", 8)
    assert next_lines(log, 8) == ("", 8)
    log.write_bytes(b"one\ntwo\nthree\n")
    assert next_lines(log, 8) == ("three\n", 14)
    log.write_bytes(b"one\ntwo\nthree\nand no end")
    assert next_lines(log, 14, ended=True) == ("and no end\n", 24)


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        (b"0%\r50%\r100%\nnext\n", "100%\nnext\n"),
        (b"a\r\nb\r\n", "a\nb\n"),
        (b"bad \xff\xfe\n", "bad \ufffd\ufffd\n"),
        (b"nul \0 here\n", "nul \ufffd here\n"),
        ("Fortschritt: ü 你好\n".encode(), "Fortschritt: ü 你好\n"),
    ],
)
def test_text_is_what_a_terminal_would_leave_and_a_database_keeps(log: Path, written: bytes, kept: str) -> None:
    log.write_bytes(written)
    assert next_lines(log, 0)[0] == kept


def test_a_line_without_an_end_is_broken_between_characters(log: Path) -> None:
    log.write_text("x" + "ü" * PIECE_BYTES, encoding="utf-8")
    text, offset = next_lines(log, 0)
    assert 0 < offset <= PIECE_BYTES
    assert "".join(piece.removesuffix("\n") for piece in [text, *drain(log, offset)]) == "x" + "ü" * PIECE_BYTES


def test_a_progress_bar_without_an_end_is_shown_now_and_then(log: Path) -> None:
    states = [f"\rstep {number} of 20000" for number in range(20_000)]
    log.write_text("".join(states))
    pieces = drain(log)
    assert len(pieces) > 3
    assert {piece.strip() for piece in pieces} <= {state.strip() for state in states}
    assert pieces[-1] == "step 19999 of 20000\n"


def test_an_attempt_s_log_is_bounded_and_its_last_lines_are_there(log: Path) -> None:
    with log.open("w") as file:
        for number in range(1_000_000):
            file.write(f"line {number}\n")
    offset, pieces = 0, []
    while True:
        text, after = next_lines(log, offset)
        if after == offset:
            break
        assert after - offset <= PIECE_BYTES
        pieces, offset = [*pieces, text], after
    assert ATTEMPT_BYTES - 2 * PIECE_BYTES < offset <= ATTEMPT_BYTES
    assert str(log) in pieces[-1].splitlines()[-1]
    (last,) = drain(log, offset)
    assert last.splitlines()[-1] == "line 999999"
    assert last.startswith("line ")
    assert len(last) <= PIECE_BYTES


def test_a_file_that_went_away_has_no_lines(log: Path) -> None:
    assert next_lines(log, 7, ended=True) == ("", 7)
    log.write_bytes(b"short\n")
    assert next_lines(log, 100, ended=True) == ("", 100)


@given(st.lists(st.binary(max_size=200) | st.sampled_from([b"\r", b"\n", b"\0", b"\xf0\x9f"]), max_size=20))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_bytes_become_whole_lines_of_good_text(log: Path, parts: list[bytes]) -> None:
    log.write_bytes(b"".join(parts))
    for text in drain(log):
        assert text.endswith("\n")
        assert not {"\0", "\r"} & set(text)
        text.encode()
