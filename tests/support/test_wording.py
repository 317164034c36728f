"""How numbers and lists are written for people."""

import math

import pytest

from prefopt.support.wording import amount, interval, listed, number

NAN, INF = math.nan, math.inf


def test_numbers_have_three_figures():
    values = (0.0, -0.0, 0.12345, 0.00375, -12.345, 1234.5, 1e-5, 2.5e9)
    shown = ["0", "0", "0.123", "0.00375", "−12.3", "1234", "1.00e−05", "2.50e+09"]
    assert [number(value) for value in values] == shown
    assert [number(value, signed=True) for value in (0.5, -0.5, 0.0)] == ["+0.500", "−0.500", "+0"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.09996, "0.100"),
        (0.009996, "0.0100"),
        (9.996, "10.0"),
        (0.0009996, "0.00100"),
        (99940.0, "99940"),
        (99996.0, "1.00e+05"),
    ],
)
def test_a_number_that_is_rounded_up_to_another_power_of_ten_has_no_figure_more(value, shown):
    assert number(value) == shown


def test_what_is_not_known_is_a_dash_and_an_open_end_is_infinite():
    assert (number(NAN), number(-INF), number(INF, signed=True)) == ("–", "−∞", "+∞")
    assert interval(-0.5, 0.00375) == "[−0.500, 0.00375]"
    assert interval(-INF, -0.2) == "[−∞, −0.200]"
    assert interval(NAN, 0.2) == interval(-INF, INF) == interval(NAN, NAN) == "–"


def test_what_is_counted_has_every_digit():
    assert [amount(value) for value in (0, 74593.0, 5.6e11)] == ["0", "74,593", "5.60e+11"]


def test_lists():
    assert [listed(words) for words in ((), ("a",), ("a", "b"), ("a", "b", "c"))] == ["", "a", "a and b", "a, b and c"]
