"""What an attempt says is kept in bounded memory, and told line by line: none twice, none lost without a word."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from jobrunner.runtime.output import MAX_OUTPUT_BYTES, Output, read_new_lines

PIECES = ["", "a", "\n", "bc\r\n", "é", "two\nlines", "line\n"]
CHUNKS = st.lists(
    st.none() | st.tuples(st.sampled_from(PIECES), st.sampled_from([1, 1, 3, 4_000, 70_000])), max_size=30
)


def said(text: str) -> list[str]:
    """The lines of a text as a terminal shows them: what follows the last line feed is one only if there is any."""
    lines = text.split("\n")
    return lines if lines[-1] else lines[:-1]


@given(CHUNKS)
def test_whoever_looks_now_and_then_is_told_every_line_once_and_in_order(chunks: list[tuple[str, int] | None]):
    output, told, known, whole = Output(), [], 0, ""
    for number, chunk in enumerate(chunks):
        if chunk is not None:
            text = f"{number}:{chunk[0] * chunk[1]}"
            whole += text
            output.write_bytes(text.encode())
        elif output.has_news:
            shown, output.shown_lines = output.whole_lines()
            new, known = read_new_lines(shown, known)
            told += new
            assert known == output.shown_lines
    new, known = read_new_lines(output.text(), known)
    told += new
    wanted = said(whole)
    assert known == len(wanted)
    place = 0
    for line in told:
        lost = re.fullmatch(r"\.\.\. ([\d,]+) lines are not shown: more was said than is kept \.\.\.", line)
        if lost is not None:
            place += int(lost[1].replace(",", ""))
        else:
            assert wanted[place].endswith(
                line.lstrip("\ufffd")
            )  # the beginning of a line longer than all that is kept is cut off
            assert line == wanted[place] or len(wanted[place]) > MAX_OUTPUT_BYTES - 200
            place += 1
    assert place == len(wanted)
    if len(whole.encode()) <= MAX_OUTPUT_BYTES:
        assert told == wanted


def test_a_line_that_has_not_ended_is_told_at_the_end():
    output = Output()
    assert (output.text(), output.whole_lines(), output.has_news) == (None, (None, 0), False)
    output.write_bytes(b"one\ntw")
    assert (output.whole_lines(), output.text()) == (("one", 1), "one\ntw")
    output.write_bytes(b"o")
    assert output.whole_lines() == ("one", 1)
    assert read_new_lines(output.text(), 1) == (["two"], 2)
    assert read_new_lines(None, 3) == ([], 3)


def test_what_is_kept_is_bounded_and_says_how_much_is_not():
    output = Output()
    for number in range(1_000_000):
        output.write(f"line {number}")
    text = output.text() or ""
    assert len(text.encode()) <= MAX_OUTPUT_BYTES
    lines = text.split("\n")
    assert lines[0] == f"... {1_000_000 - len(lines) + 1:,} of 1,000,000 lines are not kept ..."
    assert lines[-1] == "line 999999"
    new, known = read_new_lines(text, 100)
    assert new[0] == f"... {1_000_000 - len(lines) + 1 - 100:,} lines are not shown: more was said than is kept ..."
    assert (new[1:], known) == (lines[1:], 1_000_000)
