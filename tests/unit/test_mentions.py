"""Sentences of gates, divided into what leads somewhere and the rest; and the ranks that pages tell."""

from __future__ import annotations

import pytest

from jobrunner.policy.ranks import nearest_rank
from jobrunner.web.pages.mentions import Piece, mentions


def test_runs_and_known_workers_lead_to_their_pages():
    assert mentions("mail runs: run 12, before mail-2 and other", {"mail", "mail-2"}) == [
        Piece("mail", "workers/mail"),
        Piece(" runs: "),
        Piece("run 12", "runs/12"),
        Piece(", before "),
        Piece("mail-2", "workers/mail-2"),
        Piece(" and other"),
    ]


def test_a_part_of_a_word_is_no_name():
    assert mentions("e-mail, mail.x and mailbox", {"mail"}) == [Piece("e-mail, mail.x and mailbox")]
    assert mentions("rerun 5, run 0, run x", set()) == [Piece("rerun 5, run 0, run x")]
    assert mentions("", {"mail"}) == []


@pytest.mark.parametrize(
    ("values", "share", "rank"),
    [([], 0.5, None), ([7], 0.95, 7), ([3, 1, 2], 0.5, 2), ([1, 2, 3, 4], 0.5, 2), (range(1, 101), 0.95, 95)],
)
def test_a_percentile_is_a_value_that_there_was(values, share, rank):
    assert nearest_rank(values, share) == rank
