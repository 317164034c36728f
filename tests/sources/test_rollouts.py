"""Batches that the policy writes itself."""

import dataclasses
import json
import math
import tempfile
import time
from itertools import islice

import pytest
import torch
from _server import Loopback
from accelerate import Accelerator

from prefopt import Needs, PrefoptError, Turn, recipe
from prefopt.data import parse, tokenise
from prefopt.data.ordering import Shuffled
from prefopt.environments.episodes import EnvironmentReward
from prefopt.feedback import Transformed
from prefopt.feedback.judges import Judge
from prefopt.policy import Policy, Reference, TransformersSampler
from prefopt.policy.decode.sampler import Mixture
from prefopt.sources.acting import Acting
from prefopt.sources.rollouts import ALIKE, Rollouts
from prefopt.sources.scoring import Scoring
from prefopt.sources.writers import Writer
from prefopt.sources.writing import Completer
from prefopt.types import ORIGINS, STOP_REASONS, Sampled, Verdict

PROMPTS = ["the film was", "a room is", "the food", "view", "room was not and"]
SAMPLING = {"max_tokens": 6}
ANY = Needs()
ONLINE = dataclasses.replace(ANY, rollouts=True)


def vowels(prompts, completions, rows):
    """The share of vowels; no verdict on a text that goes on with a."""
    return [
        [None if text.startswith(" a") else sum(c in "aeiou" for c in text) / (len(text) + 1) for text in row]
        for row in completions
    ]


@pytest.fixture
def make(llama, tokenizer):
    """Rollouts of the tiny policy."""

    def rollouts(writers=(), feedback=vowels, needs=ANY, prompts=3, seed=0, folder=None, ties="drop", **settings):
        rows = tokenise(
            [parse({"prompt": text, "completion": " good", "id": i}) for i, text in enumerate(PROMPTS)], tokenizer
        )[0]
        spec = recipe.Rollouts(**{"completions": 4, "sampling": SAMPLING} | settings)
        writers = [Writer("policy", llama, spec.completions, True, spec.sampling), *writers]
        accelerator = Accelerator(cpu=True)
        sampler = TransformersSampler(spec.batch_size)
        return Rollouts(
            rows,
            Shuffled(len(rows), seed),
            writers,
            Completer.of(sampler, llama, spec.sampling, accelerator),
            Scoring(feedback if isinstance(feedback, dict) else {"scores": feedback}, accelerator, folder),
            needs,
            spec,
            prompts,
            seed,
            ties,
        )

    return rollouts


@pytest.fixture
def llama(lm_folder, tokenizer):
    from transformers import AutoModelForCausalLM

    return Policy(AutoModelForCausalLM.from_pretrained(lm_folder).double().eval(), tokenizer)


def use(rollouts, sampler):
    """Let another sampler draw."""
    rollouts.completer = dataclasses.replace(rollouts.completer, sampler=sampler)


def first(rollouts):
    return next(iter(rollouts))


def texts(batch, tokenizer):
    """Behind the prompts: with the blank that parts two words, which a special token at the beginning does without."""
    own = [
        [tokenizer.decode([i for i in ids[mask].tolist() if i]) for ids, mask in zip(row, masks, strict=True)]
        for row, masks in zip(batch.completion_ids, batch.mask, strict=True)
    ]
    return [[text if text.startswith("<unk>") else f" {text}" for text in row] for row in own]


def test_scores_are_of_what_was_written(make, tokenizer):
    batch = first(make(feedback=lambda p, c, r: [[len(text) for text in row] for row in c]))
    assert batch.mask.shape[:2] == (3, 4)
    assert batch.scores.tolist() == [[len(text) for text in row] for row in texts(batch, tokenizer)]
    assert [tokenizer.decode(ids) for ids in batch.prompt_ids] == [PROMPTS[i] for i in batch.columns["row"]]


def test_feedback_sees_prompts_columns_and_what_ended(make):
    seen = []

    def feedback(prompts, completions, rows):
        seen.extend(zip(prompts, completions, rows, strict=True))
        return [[0.0] * len(row) for row in completions]

    batch = first(make(feedback=feedback))
    for i, (prompt, _, row) in enumerate(seen):
        assert prompt == PROMPTS[row["id"]]
        assert row["ended"] == batch.columns["ended"][i].tolist()
    last = batch.completion_ids.gather(-1, (batch.mask.sum(-1, keepdim=True) - 1)).squeeze(-1)
    assert torch.equal(batch.columns["ended"], last == 0)
    assert 0 < batch.columns["ended"].double().mean() < 1


def test_the_samplers_log_probs_are_the_policys(make, llama):
    for temperature in (1.0, 0.6):
        batch = first(make(sampling=SAMPLING | {"temperature": temperature}))
        assert batch.columns["temperature"].tolist() == pytest.approx([temperature] * 3)
        with torch.no_grad():
            logps = llama(batch, Needs()).logps
        torch.testing.assert_close(batch.columns["sampler_logps"].double(), logps, atol=1e-5, rtol=0)


def test_completions_without_a_verdict_are_absent_and_counted(make, tokenizer):
    rollouts = make(completions=12)
    batch = first(rollouts)
    assert rollouts.counts["completions dropped: no verdict"] == 3 * 12 - batch.present.sum() > 0
    written = texts(batch, tokenizer)
    assert not any(text.startswith(" a") for row in written for text in row)
    expected = vowels(None, written, None)
    for b, k in batch.present.nonzero().tolist():
        assert batch.scores[b, k] == pytest.approx(expected[b][k])


def test_pairs_are_best_and_worst_in_order(make):
    batch = first(make(needs=Needs(completions=2, ordered=True), feedback=lambda p, c, r: [[1.0, 4, 3, 2]] * len(c)))
    every = first(make(feedback=lambda p, c, r: [[1.0, 4, 3, 2]] * len(c)))
    assert batch.scores.tolist() == [[4, 1]] * 3
    for place, k in enumerate((1, 0)):
        width = batch.mask[:, place].sum(-1).max()
        assert torch.equal(batch.completion_ids[:, place, :width], every.completion_ids[:, k, :width])
        assert torch.equal(
            batch.columns["sampler_logps"][:, place, :width], every.columns["sampler_logps"][:, k, :width]
        )


def test_ties_have_no_order(make):
    tied = {"needs": Needs(completions=2, ordered=True), "feedback": lambda p, c, r: [[1.0] * 4] * len(c)}
    assert len(first(make(**tied))) == 0
    assert first(make(**tied, ties="keep")).scores.tolist() == [[1, 1]] * 3


def test_a_batch_is_a_function_of_seed_and_place(make):
    one, other = make(), make()
    batches = list(islice(iter(one), 3))
    assert all(torch.equal(batch.completion_ids, first(other).completion_ids) for batch in batches)
    assert not torch.equal(batches[0].completion_ids, first(make(seed=1)).completion_ids)
    resumed = make()
    resumed.load_state_dict(one.state_dict())
    assert torch.equal(first(resumed).completion_ids, first(one).completion_ids)
    # One prompt in two batches is answered anew.
    rows = [batch.columns["row"].tolist() for batch in batches]
    again = next(row for row in rows[0] if row in rows[1] + rows[2])
    a, b = (batches[i].completion_ids[rows[i].index(again)].tolist() for i in range(3) if again in rows[i])
    assert a != b


def test_writers_write_beside_the_policy(make, llama, tokenizer):
    with torch.no_grad():
        other = Policy(llama.model.__class__(llama.model.config).double().eval(), tokenizer)
    greedy = recipe.Sampling(max_tokens=6, temperature=0)
    sampling = recipe.Sampling(max_tokens=6)
    writers = [
        Writer("greedy", llama, 1, False, greedy),
        Writer("reference", Reference(other), 1, True, sampling),
        Writer("mixture", Mixture(llama, Reference(other), 1.0), 1, False, sampling),
        Writer("dataset"),
    ]
    batch = first(make(writers, feedback=lambda p, c, r: [[0.5] * len(row) for row in c]))
    names = ["policy"] * 4 + ["greedy", "reference", "mixture", "dataset"]
    assert batch.columns["origin"].tolist() == [[ORIGINS.index(name) for name in names]] * 3
    assert batch.columns["trained"].tolist() == [[True] * 4 + [False, True, False, True]] * 3
    plain = first(make(feedback=lambda p, c, r: [[0.5] * len(row) for row in c]))
    width = plain.mask.shape[-1]
    assert torch.equal(batch.completion_ids[:, :4, :width], plain.completion_ids)  # the others change nothing
    assert {text[7] for text in texts(batch, tokenizer)} == {" good"}
    for b, prompt in enumerate(batch.prompt_ids):
        row = list(prompt)
        for token in batch.completion_ids[b, 4][batch.mask[b, 4]].tolist():
            assert llama.model(input_ids=torch.tensor([row])).logits[0, -1].argmax() == token
            row.append(token)


def test_refill_replaces_prompts_whose_completions_are_all_alike(make):
    def feedback(prompts, completions, rows):
        return [
            [0.0] * len(c) if row["id"] == 3 else list(range(len(c))) for c, row in zip(completions, rows, strict=True)
        ]

    filled = make(feedback=feedback, refill=True)
    batches = list(islice(iter(filled), 3))
    assert all(len(batch) == 3 and 3 not in batch.columns["row"] for batch in batches)
    assert any(3 in batch.columns["row"] for batch in islice(iter(make(feedback=feedback)), 3))
    tied = make(feedback=lambda p, c, r: [[1.0] * len(row) for row in c], refill=True)
    assert len(first(tied)) == 0 and tied.counts[ALIKE] == 30  # ten times three prompts


def test_batches_are_made_in_memory(make, monkeypatch):
    def refuse(*given, **settings):
        raise AssertionError("a file was opened")

    rollouts = make()
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert len(first(rollouts)) == 3


def test_other_feedback_fills_columns(make):
    feedback = {
        "scores": lambda p, c, r: [[1.0] * len(row) for row in c],
        "gold": lambda p, c, r: [[math.nan, 2, 3, 4]] * len(c),
        "cost": lambda p, c, r: Verdict(torch.full((len(c), 4), 7.0)),
    }
    batch = first(make(feedback=feedback))
    assert batch.columns["gold"][:, 1:].tolist() == [[2, 3, 4]] * 3
    assert batch.columns["gold"][:, 0].isnan().all()
    assert batch.columns["cost"].eq(7).all()


def test_several_scores_stay_apart(make):
    named = {"helpful": torch.rand(3, 4), "safe": torch.tensor([[1.0, 2, 3, 4]] * 3)}
    scores = torch.tensor([[1.0, 4, 3, 2]] * 3)
    feedback = {"scores": lambda p, c, r: Verdict(scores, named=named)}
    batch = first(make(feedback=feedback))
    assert batch.named_scores.keys() == named.keys()
    assert all(torch.equal(batch.named_scores[name], named[name]) for name in named)
    pair = first(make(feedback=feedback, needs=Needs(completions=2, ordered=True)))  # they follow their completions
    assert torch.equal(pair.named_scores["helpful"], named["helpful"][:, [1, 0]])
    assert not [name for name in batch.columns if "score" in name]


def test_the_number_of_a_turn_is_on_its_last_token(make):
    steps = [[[0.5], [1.5], [2.5], [3.5]]] * 3
    feedback = {"scores": lambda p, c, r: Verdict(torch.full((3, 4), 0.25), steps=steps)}
    batch = first(make(feedback=feedback, needs=ONLINE))
    assert batch.scores.tolist() == [[0.25] * 4] * 3
    last = (batch.lengths - 1)[..., None]
    assert batch.rewards.gather(-1, last)[..., 0].tolist() == [[0.5, 1.5, 2.5, 3.5]] * 3
    assert batch.rewards.sum(-1).tolist() == [[0.5, 1.5, 2.5, 3.5]] * 3
    assert first(make()).rewards is None
    # An objective for recorded data knows scores of whole completions alone.
    whole = first(make(feedback=feedback))
    assert whole.rewards is None and whole.scores.tolist() == [[0.75, 1.75, 2.75, 3.75]] * 3
    ordered = first(make(feedback=feedback, needs=dataclasses.replace(ANY, completions=2, ordered=True)))
    assert ordered.scores.tolist() == [[3.75, 0.75]] * 3


def test_each_turn_of_a_completion_has_its_own_reward(make, llama):
    ends = make().completer.ends

    def sampler(model, prompts, completions, settings, seeds):
        mask = torch.tensor([1, 1, 0, 0, 1, 1], dtype=torch.bool).expand(len(prompts), completions, 6)
        return Sampled(torch.full(mask.shape, 5), mask)

    feedback = {"scores": lambda p, c, r: Verdict(torch.zeros(3, 4), steps=[[[1.0, 2.0]] * 4] * 3)}
    rollouts = make(feedback=feedback, needs=ONLINE)
    use(rollouts, sampler)
    batch = first(rollouts)
    assert 5 not in ends.eos
    assert batch.rewards.tolist() == [[[0, 1, 0, 0, 0, 2]] * 4] * 3
    assert batch.mask.tolist() == [[[True, True, False, False, True, True]] * 4] * 3
    assert rollouts.tokens == 3 * 4 * 4, "of the policy, and not of what it was answered"


def test_a_verdict_with_another_number_of_steps_than_turns_is_refused(make):
    steps = [[[0.5, 1.0]] * 4] * 3
    with pytest.raises(PrefoptError, match="gives 2 numbers in `steps` to completion 1 of a prompt, which has 1 turn;"):
        first(make(feedback={"scores": lambda p, c, r: Verdict(torch.zeros(3, 4), steps=steps)}))


def test_a_batch_says_which_version_of_the_policy_wrote_it(make, llama):
    sampling = recipe.Sampling(max_tokens=6)
    writers = [Writer("reference", Reference(llama), 1, True, sampling), Writer("dataset")]
    rollouts = make(writers, feedback=lambda p, c, r: [[0.5] * len(row) for row in c])
    batches = list(islice(iter(rollouts), 3))
    assert [batch.version.tolist() for batch in batches] == [[[i] * 4 + [-1, -1]] * 3 for i in range(3)]
    resumed = make(writers, feedback=lambda p, c, r: [[0.5] * len(row) for row in c])
    resumed.load_state_dict(rollouts.state_dict())
    assert first(resumed).version[0, 0] == 3


def test_refill_compares_the_tasks_scores_and_not_what_a_penalty_made_of_them(make):
    """A prompt that nobody solves teaches nothing, however the lengths of its completions differ."""
    from prefopt.feedback import Transformed

    def half(prompts, completions, rows):
        return [
            [0.0] * len(texts) if row["id"] % 2 else [0.0, 1.0, 0.0, 1.0]
            for texts, row in zip(completions, rows, strict=True)
        ]

    def by_place(scores, prompts, completions, rows):
        return scores - 0.01 * torch.arange(scores.shape[1])

    filled = make(feedback=Transformed(half, (by_place,), "half"), refill=True)
    batch = first(filled)
    assert len(batch) == filled.batch_size
    assert (batch.scores.max(-1).values > 0.5).all()
    assert filled.counts["prompts replaced: all their completions have one score"] > 0


def test_the_version_is_of_batches_however_often_one_was_refilled(make):
    alike = make(feedback=lambda p, c, r: [[0.0] * 4 if x["id"] == 3 else [1.0, 2, 3, 4] for x in r], refill=True)
    batches = list(islice(iter(alike), 3))
    assert alike.draws > 3
    assert [batch.version.unique().tolist() for batch in batches] == [[0], [1], [2]]


def test_a_sampler_has_the_weights_of_each_update_once(make, llama):
    class Copying(TransformersSampler):
        synced = ()

        def sync(self, policy, version):
            self.synced += ((policy is llama, version),)

    sampler = Copying()
    rollouts = make(completions=3)
    use(rollouts, sampler)
    list(islice(iter(rollouts), 2))
    assert sampler.synced == ((True, 0), (True, 1))


def test_why_each_completion_ended_is_in_the_batch(make):
    batch = first(make(feedback=lambda p, c, r: [[1.0] * 4] * len(c)))
    reasons = {STOP_REASONS[i] for i in batch.columns["stop_reason"].flatten().tolist()}
    assert reasons == {"eos", "length"}
    assert torch.equal(batch.columns["ended"], batch.columns["stop_reason"] == STOP_REASONS.index("eos"))


def test_preferences_come_along(make):
    preference = torch.rand(3, 4, 4)
    feedback = {"scores": lambda p, c, r: Verdict(torch.zeros(3, 4), preference)}
    batch = first(make(feedback=feedback, needs=Needs(preference=True)))
    torch.testing.assert_close(batch.preference, preference)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda p, c, r: 1 / 0, "ZeroDivisionError"),
        (lambda p, c, r: [[1.0]], "expected one number for each completion"),
    ],
)
def test_a_failing_feedback_is_named_and_the_batch_is_kept(make, tmp_path, answer, message):
    rollouts = make(feedback=answer, folder=tmp_path)
    with pytest.raises(PrefoptError, match=f"(?s)scores.*{message}.*feedback-failed-batch-1.jsonl"):
        first(rollouts)
    lines = [json.loads(line) for line in (tmp_path / "feedback-failed-batch-1.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == [PROMPTS[i] for i in Shuffled(5, 0).take(3)]
    assert all(len(line["completions"]) == 4 for line in lines)


def test_a_sampler_that_does_not_say_what_it_thought_is_not_corrected_for(make):
    from prefopt.objectives.online.correction import Correction

    rollouts = make()
    draws = rollouts.completer.sampler
    use(rollouts, lambda *given: dataclasses.replace(draws(*given), logps=None))
    batch = first(rollouts)
    said = batch.columns["sampler_logps"]
    assert said[batch.mask].isnan().all()
    assert (Correction(high=2.0).ratio(torch.randn_like(said), said, batch.mask) == 1).all()


def test_a_completion_whose_cost_nobody_knows_is_absent(make):
    feedback = {
        "scores": lambda p, c, r: [[1.0] * len(row) for row in c],
        "cost": lambda p, c, r: [[None, 2.0, 3.0, 4.0]] * len(c),
    }
    batch = first(make(feedback=feedback, needs=Needs(scores=True, columns=("cost",))))
    assert batch.columns["cost"].tolist() == [[2.0, 3.0, 4.0]] * 3


def test_a_mismatched_writer_joins_when_the_batch_is_made(make):
    needs = Needs(completions=2, scores=True, columns=("origin",))
    batch = first(
        make(
            [Writer("mismatched", trained=False)], completions=1, needs=needs, feedback=lambda p, c, r: [[0.5]] * len(c)
        )
    )
    assert batch.mask.shape[1] == 2
    assert batch.columns["origin"].tolist() == [[ORIGINS.index("policy"), ORIGINS.index("mismatched")]] * 3


def test_what_was_kept_is_not_dropped(make):
    rollouts = make(
        needs=Needs(completions=2, ordered=True), feedback=lambda p, c, r: [[1.0] * 4] * len(c), ties="keep"
    )
    first(rollouts)
    assert rollouts.dropped == 0 < rollouts.counts.total()


# Asked ahead

RUBRIC = {"question": "{{ prompt }}{{ completion }}", "labels": ["good", "bad"]}


class Opinionated(Loopback):
    """What it says of a text depends on all of it."""

    def next_tokens(self, text):
        share = (1 + sum(map(ord, text)) % 8) / 10
        return {"good": math.log(share), "bad": math.log(1 - share)}


class Patient(TransformersSampler):
    """Draws only when what was drawn before is being judged."""

    def __init__(self, rows, server):
        super().__init__(rows)
        self.server, self.parts = server, []

    def __call__(self, model, prompts, *more):
        deadline = time.monotonic() + 20
        while self.parts and not self.server.asked and time.monotonic() < deadline:
            time.sleep(0.005)
        self.parts.append((len(prompts), len(self.server.asked)))
        return super().__call__(model, prompts, *more)


@pytest.fixture
def judged(make, tmp_path, monkeypatch):
    """Rollouts that a server scores, the sampler drawing two completions at a time; the judge, and the server."""
    with Opinionated().running() as server:

        def build(cache, **more):
            monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / cache))
            told = {"model": "m", "base_url": server.url, "key_env": None, "endpoint": "completions"}
            judge = Judge(RUBRIC, "pointwise", server=told)
            feedback = {"scores": Transformed(judge, (), "judge"), **more}
            return make(feedback=feedback, completions=2, batch_size=2, prompts=4), judge

        yield build, server


def test_a_server_is_asked_while_the_rest_is_written(judged):
    build, server = judged
    rollouts, judge = build("cache")
    sampler = Patient(2, server)
    use(rollouts, sampler)
    batch = first(rollouts)
    assert [size for size, _ in sampler.parts] == [1, 1, 1, 1]
    assert sampler.parts[0][1] == 0 and sampler.parts[-1][1] > 0
    asked = [body["prompt"] for _, body, _ in server.asked]
    assert len(asked) == len({*asked}) == judge.spent["calls"] and judge.spent["hits"] == 8 - len(asked)
    assert batch.scores.isfinite().all()


def test_the_batch_is_the_same_as_if_nobody_was_asked_ahead(judged):
    build, server = judged
    ahead = first(build("one")[0])
    asked = len(server.asked)
    rollouts, _ = build("other")
    use(rollouts, lambda *given: TransformersSampler(2)(*given))  # a user's own, which draws a batch as it likes
    alone = first(rollouts)
    assert len(server.asked) == 2 * asked
    assert ahead.prompt_ids == alone.prompt_ids
    assert torch.equal(ahead.completion_ids, alone.completion_ids) and torch.equal(ahead.scores, alone.scores)
    assert len(ahead.scores.unique()) > 4


def test_a_failure_ahead_is_told_by_the_call(judged):
    build, server = judged
    server.faults = [401] * 20
    with pytest.raises(PrefoptError, match="401"):
        first(build("cache")[0])
    assert server.received == 2, "once ahead, and once by the call"


def test_a_named_score_that_feedback_does_not_give_is_said(make):
    def helpful(prompts, completions, rows):
        return Verdict(torch.zeros(len(prompts), 4), named={"helpful": torch.zeros(len(prompts), 4)})

    assert (
        next(iter(make(feedback=helpful, needs=Needs(named_scores=("helpful",))))).named_scores["helpful"].shape[1] == 4
    )
    with pytest.raises(PrefoptError, match=r"needs the named scores safe, .* gave no 'safe'.*it named helpful"):
        next(iter(make(feedback=helpful, needs=Needs(named_scores=("safe",)))))


def test_what_has_no_verdict_is_among_those_counted_by_why_they_ended(make):
    class Picky:
        def reset(self, row, seed):
            return None

        def step(self, text, *, truncated):
            if truncated:
                raise ValueError("half a turn")
            return Turn(reward=len(text), done=True)

    rollouts = make(feedback=EnvironmentReward())
    acting = Acting(Picky, "Picky", 1, 40, None)
    policy, spec = rollouts.writers[0].model, rollouts.settings.sampling
    rollouts.completer = Completer.of(TransformersSampler(), policy, spec, Accelerator(cpu=True), acting)
    batch = first(rollouts)
    drawn = [one for group, _ in rollouts.judged_groups for one in group.written]
    failed = sum(one.stop == "error" for one in drawn)
    assert 0 < failed < len(drawn) == 12 and int(batch.present.sum()) == 12 - failed
    assert rollouts.metrics["rollouts/stop_error"] == rollouts.metrics["environment/failed"] == failed / 12
    assert rollouts.metrics["rollouts/ended"] == rollouts.metrics["rollouts/stop_eos"] == (12 - failed) / 12


def test_an_objective_that_needs_comparisons_refuses_scores(make):
    with pytest.raises(PrefoptError, match="that one completion beats another, and the feedback gave scores alone"):
        first(make(needs=Needs(preference=True)))
