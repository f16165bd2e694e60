"""Circles of dependencies are found and shown as a path."""

from __future__ import annotations

import pytest

from jobrunner.errors import DependencyCycle
from jobrunner.policy.dependencies import find_cycle, refuse_cycles


def test_workers_without_a_circle_are_accepted():
    edges = {"a": [], "b": ["a"], "c": ["a", "b"], "d": ["b", "c"]}
    assert find_cycle(edges) is None
    refuse_cycles(edges)


def test_a_circle_is_shown_as_a_path_that_ends_where_it_began():
    assert find_cycle({"a": ["b"], "b": ["c"], "c": ["a"]}) == ("a", "b", "c", "a")


def test_a_circle_of_two_is_found():
    assert find_cycle({"a": ["b"], "b": ["a"]}) == ("a", "b", "a")


def test_a_worker_that_waits_for_itself_is_a_circle():
    assert find_cycle({"a": ["a"]}) == ("a", "a")


def test_what_only_leads_into_a_circle_is_not_part_of_its_path():
    assert find_cycle({"a": ["b"], "b": ["c"], "c": ["b"]}) == ("b", "c", "b")


def test_a_name_that_is_waited_for_along_two_ways_is_no_circle():
    assert find_cycle({"a": ["b", "c"], "b": ["d"], "c": ["d"], "d": []}) is None


def test_a_circle_behind_a_finished_branch_is_found():
    assert find_cycle({"a": ["b"], "b": [], "c": ["b", "d"], "d": ["c"]}) == ("c", "d", "c")


def test_the_same_circle_is_shown_whatever_the_order_of_the_names():
    edges = {"a": ["b"], "b": ["c"], "c": ["a"], "x": ["y"], "y": ["x"]}
    assert find_cycle(dict(reversed(edges.items()))) == find_cycle(edges)


def test_a_chain_longer_than_pythons_stack_is_looked_through():
    edges = {f"w{n}": [f"w{n + 1}"] for n in range(5000)}
    assert find_cycle(edges) is None
    found = find_cycle({**edges, "w5000": ["w0"]})
    assert found is not None
    assert len(found) == 5002


def test_the_refusal_prints_the_path_and_what_to_do():
    with pytest.raises(DependencyCycle, match=r"^dependency cycle: a -> b -> a; take one of these depends_on away$"):
        refuse_cycles({"a": ["b"], "b": ["a"]})
