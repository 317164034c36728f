"""A sampler of one's own: made with what its constructor asks for, and asked about the recipe before anything is loaded."""

import pytest
from accelerate import Accelerator

from prefopt import PrefoptError
from prefopt.policy import check_sampler, make_sampler
from prefopt.recipe import Recipe, Samples

OWN = """
class Bare:
    def __call__(self, model, prompt_ids, completions, settings, seeds): ...

class Asking(Bare):
    def __init__(self, accelerator, tokenizer, server, settings):
        self.got = (accelerator, tokenizer, server, settings)

class Demanding(Bare):
    def __init__(self, weather): ...

class Choosy(Bare):
    @classmethod
    def refuses(cls, recipe):
        return "it serves seed 0 alone" if recipe.seed else None

class Wrong:
    def __call__(self, prompts): ...
"""


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    return lambda name: Samples(sampler=f"{tmp_path}/own.py:{name}", server="http://here")


def test_it_gets_what_its_constructor_names(spec, llama):
    accelerator = Accelerator(cpu=True)
    asked = spec("Asking")
    sampler = make_sampler(asked, accelerator, "samples", llama)
    assert sampler.got == (accelerator, llama.tokenizer, "http://here", asked)
    assert type(make_sampler(spec("Bare"), accelerator)).__name__ == "Bare"


def test_what_nobody_can_give_is_refused(spec):
    with pytest.raises(
        PrefoptError, match=r"samples.sampler: .*Demanding needs 'weather'; .* it can ask for accelerator"
    ):
        check_sampler(spec("Demanding"), "samples")


def test_one_that_cannot_be_called_like_a_sampler_is_refused(spec):
    with pytest.raises(PrefoptError, match=r"called with .model, prompt_ids, completions, settings, seeds."):
        check_sampler(spec("Wrong"))


@pytest.mark.parametrize("seed", [0, 1])
def test_it_may_refuse_the_recipe(spec, seed):
    recipe = Recipe(policy={"model": "m"}, source={"data": "d"}, objective="SFT", train={"steps": 1}, seed=seed)
    if seed:
        with pytest.raises(PrefoptError, match=r"evaluate.sampler is .*Choosy: it serves seed 0 alone"):
            check_sampler(spec("Choosy"), "evaluate", recipe)
    else:
        check_sampler(spec("Choosy"), "evaluate", recipe)
