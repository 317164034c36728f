"""Names and fields of objectives, as they are known before torch is imported."""

import inspect

import pytest

from prefopt.objectives import CATALOGUE
from prefopt.objectives.names import check_terms, fields_of, homes
from prefopt.recipe import Term
from prefopt.support.errors import PrefoptError


def test_the_names_are_those_of_the_catalogue():
    assert sorted(homes()) == sorted(CATALOGUE)


@pytest.mark.parametrize("name", CATALOGUE)
def test_the_fields_are_those_of_the_class(name):
    assert fields_of(name) == tuple(inspect.signature(CATALOGUE[name]).parameters)


def test_an_objective_of_ones_own_is_left_to_whoever_loads_it():
    check_terms([Term(name="losses.py:Mine", anything=1), Term(name="DPO", beta=0.3)])


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (Term(name="DPOO"), "unknown objective 'DPOO'. Did you mean 'DPO'?"),
        (Term(name="DPO", betta=0.1), "DPO has no field 'betta'. Did you mean 'beta'?"),
        (Term(name="DPO", learning_rate=0.1), "train.lr"),
    ],
)
def test_what_there_is_not_is_refused_with_what_was_meant(term, message):
    with pytest.raises(PrefoptError) as refused:
        check_terms([term])
    assert message in str(refused.value)
