from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.data import split
from prefopt.support.errors import PrefoptError


@dataclass(frozen=True)
class Row:
    group: str
    number: int = 0
    where: str = ""


groups = st.lists(st.text(max_size=3), max_size=40)
third = (0.4, 0.3, 0.3)


@given(groups, st.integers())
@settings(max_examples=50, deadline=None)
def test_a_partition_that_no_group_straddles(names, seed):
    rows = [Row(name, i) for i, name in enumerate(names)]
    parts = split(rows, third, seed)
    assert sorted((row for part in parts for row in part), key=lambda row: row.number) == rows
    for part in parts:
        assert [row.number for row in part] == sorted(row.number for row in part)
    where = [{row.group for row in part} for part in parts]
    assert sum(map(len, where)) == len(set().union(*where))


@given(groups, groups, st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_more_rows_move_no_other(names, more, seed):
    rows = [Row(name) for name in names]
    before, after = split(rows, third, seed), split(rows + [Row(name) for name in more], third, seed)
    for old, new in zip(before, after, strict=True):
        assert list(new)[: len(old)] == list(old)


def test_fractions_and_seed():
    rows = [Row(str(i)) for i in range(4000)]
    parts = split(rows, (0.7, 0.2, 0.1), seed=1)
    # Four standard deviations of a binomial count.
    for part, expected in zip(parts, (2800, 800, 400), strict=True):
        assert abs(len(part) - expected) < 4 * (expected * (1 - expected / 4000)) ** 0.5
    assert list(parts.test) != list(split(rows, (0.7, 0.2, 0.1), seed=2).test)
    assert [len(part) for part in split(rows, (0, 1, 0))] == [0, 4000, 0]
    assert [len(part) for part in split(rows, (0, 0, 1))] == [0, 0, 4000]


def test_the_same_on_every_machine():
    parts = split([Row(name) for name in "abcdefgh"], third, seed=0)
    # blake2b("0\0a") / 2⁶⁴ and so on, by hashlib alone: .085 .364 .003 .079 .765 .985 .498 .262
    assert ["".join(row.group for row in part) for part in parts] == ["abcdh", "g", "ef"]


@pytest.mark.parametrize("fractions", [(0.5, 0.5, 0.5), (1.2, -0.2, 0), (0.5, 0.5)])
def test_bad_fractions(fractions):
    with pytest.raises(PrefoptError, match="sum is 1"):
        split([], fractions)
