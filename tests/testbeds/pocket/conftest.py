from random import Random

import pytest

from prefopt.testbeds.pocket import data
from prefopt.testbeds.pocket.grammar import write
from prefopt.testbeds.pocket.requests import read


@pytest.fixture
def writer(monkeypatch):
    """The grammar's writer in place of the LM: for what is said *about* texts, where thousands are needed."""

    def sample(texts, completions, seeds, temperature=1.0):
        randoms = [Random(seed) for seed in seeds]
        return [[str(write(read(t), r)) for _ in range(completions)] for t, r in zip(texts, randoms, strict=True)]

    monkeypatch.setattr(data, "sample", sample)
