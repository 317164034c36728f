"""The server backend against a small server of our own that follows OpenAI's schema and fails as it is told."""

import dataclasses
import logging
import math
import traceback

import openai._base_client
import pytest
from _server import Loopback

from prefopt import PrefoptError
from prefopt.feedback.judges import Answer, Backend, Question
from prefopt.feedback.judges.memory import Budget, Memory
from prefopt.feedback.judges.server import OPENAI, Server
from prefopt.support.plugins import checked_fields

AB = (" A", " B")
KEY = "sk-Geheim0123456789"


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Retries without long waits, and no key unless a test sets one."""
    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def loopback():
    with Loopback().running() as server:
        yield server


def question(text="which?", **fields):
    return Question((("system", "You judge."), ("user", text)), **fields)


def told(server, *questions):
    found = dict(server.ask(questions))
    return [dataclasses.replace(found[i], served="") for i in range(len(questions))]


def exps(answer):
    return [math.exp(logp) for logp in answer.logps]


# What is sent, and what is made of the answer


def test_a_chat_is_asked_for_a_text(loopback):
    server = Server("m", loopback.url)
    assert isinstance(server, Backend)
    said = told(server, question("one two", max_tokens=9), question("three", max_tokens=9, temperature=0.7, seed=5))
    assert said == [
        Answer(text="said: one two", prompt_tokens=2, completion_tokens=1),
        Answer(None, "said: three", 1, 1),
    ]
    turns = [{"role": "system", "content": "You judge."}, {"role": "user", "content": "one two"}]
    path, body, _ = loopback.asked[0]
    assert path == "/v1/chat/completions"
    assert body == {"model": "m", "messages": turns, "max_tokens": 9, "temperature": 0.0}
    assert loopback.asked[1][1]["seed"] == 5 and loopback.asked[1][1]["temperature"] == 0.7


def test_the_beginning_of_an_answer_is_asked_to_be_gone_on_from(loopback):
    (said,) = told(Server("m", loopback.url), question(start="Better:", max_tokens=9))
    turns = loopback.asked[0][1]["messages"]
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user"]
    assert turns[2]["content"] == "Better:" and turns[3]["content"].startswith("Go on")
    assert said.text.startswith("said: Go on")


def test_a_beginning_that_is_repeated_is_no_part_of_the_answer(loopback):
    message = {"role": "assistant", "content": " Better: A"}
    loopback.faults = [(200, {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [
        {"index": 0, "finish_reason": "stop", "message": message}]})]  # fmt: skip
    (said,) = told(Server("m", loopback.url), question(start="Better:", max_tokens=9))
    assert said == Answer(text=" A")


def test_a_server_that_continues_is_told_to(loopback):
    told(Server("m", loopback.url, starts="continue"), question(start="Better:", max_tokens=9), question(max_tokens=9))
    begun, plain = (body for _, body, _ in loopback.asked)
    assert begun["messages"][-1] == {"role": "assistant", "content": "Better:"}
    assert begun["continue_final_message"] is True and begun["add_generation_prompt"] is False
    assert "continue_final_message" not in plain


def test_completions_get_one_text(loopback):
    (said,) = told(Server("m", loopback.url, endpoint="completions"), question(start="Better:", max_tokens=9))
    path, body, _ = loopback.asked[0]
    assert path == "/v1/completions" and body["prompt"] == "You judge.\nwhich?\nBetter:"
    assert said.text == "said: You judge.\nwhich?\nBetter:"


def test_completions_by_a_chat_template(loopback, tokenizer, tmp_path):
    copy = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token="</s>")
    copy.chat_template = "{% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}<answer>"
    copy.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    server = Server("m", loopback.url, endpoint="completions", template=str(tmp_path))
    told(server, question(start=" Better:", max_tokens=9))
    assert loopback.asked[0][1]["prompt"] == "<system> You judge. <user> which? <answer> Better:"


def test_extra_fields_are_sent_and_taken_away(loopback):
    extra = {"top_p": 0.5, "max_tokens": None, "max_completion_tokens": 7, "chat_template_kwargs": {"thinking": False}}
    server = Server("m", loopback.url, extra=extra)
    told(server, question(max_tokens=9))
    body = loopback.asked[0][1]
    assert "max_tokens" not in body
    assert {name: body[name] for name in extra if name in body} == {k: v for k, v in extra.items() if v is not None}
    assert server.identity["extra"] == extra


def test_no_text_is_no_answer_and_a_refusal_is_one(loopback):
    for message, answer in [
        ({"content": None}, Answer(missing="empty")),
        ({"content": None, "refusal": "No."}, Answer(text="No.")),
        ({"content": "é\ufffd"}, Answer(text="é\ufffd")),
        ({"content": [{"type": "thinking", "thinking": "x"}, {"type": "text", "text": "8"}]}, Answer(text="8")),
    ]:
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", **message}}
        loopback.faults = [(200, {"id": "x", "object": "chat.completion", "choices": [choice]})]
        assert told(Server("m", loopback.url), question(max_tokens=2)) == [answer]


def test_half_a_surrogate_pair_does_not_crash(loopback):
    (said,) = told(Server("m", loopback.url), question("a \ud83d b \ud83d\ude00", max_tokens=2))
    assert said.text == "said: a \ufffd b \U0001f600"


# Likelihoods


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_labels_have_the_likelihood_of_their_token(loopback, endpoint):
    server = Server("m", loopback.url, endpoint=endpoint)
    (said,) = told(server, question(labels=AB))
    # A chat that is asked for the answer begins it without the space: " A" and "A" are one there.
    assert exps(said) == pytest.approx([0.65, 0.3] if endpoint == "chat" else [0.6, 0.3])
    body = loopback.asked[0][1]
    assert body["max_tokens"] == 1 and body["temperature"] == 1
    assert (body["logprobs"], body.get("top_logprobs")) == ((True, 20) if endpoint == "chat" else (20, None))
    assert (said.calls, said.completion_tokens) == (1, 1)


def test_a_label_of_two_tokens_takes_two_requests(loopback):
    loopback.table = {"": {" 1": 0.5, " 2": 0.3}, "Score: 1": {"0": 0.25, "!": 0.75}}
    for server in (Server("m", loopback.url, endpoint="completions"), Server("m", loopback.url, starts="continue")):
        (said,) = told(server, question(start="Score:", labels=(" 1", " 2", " 10")))
        assert exps(said) == pytest.approx([0.5, 0.3, 0.125])
        assert said.calls == 2 and said.completion_tokens == 2


def test_a_chat_refuses_a_label_of_two_tokens(loopback):
    loopback.table = {"": {"1": 0.5, "2": 0.3}}
    with pytest.raises(
        PrefoptError, match=r"label '10' may be several tokens to .*'1' is one.*1 to 9.*starts: continue"
    ):
        told(Server("m", loopback.url), question(labels=("1", "2", "10")))


def test_a_chat_finds_out_that_an_improbable_label_is_one_token(loopback):
    loopback.table = {"": {"1": 0.5, "2": 0.3}, "nothing else: 10": {"10": 0.99, "1": 0.01}}
    server = Server("m", loopback.url)
    said = told(server, *[question(f"q{n}", labels=("1", "2", "10")) for n in range(3)])
    assert [one.calls for one in said] == [2, 1, 1]
    assert all(exps(one) == pytest.approx([0.5, 0.3, 0]) for one in said)
    assert server.seen["unlisted"] == 3


def test_a_label_that_no_list_has_is_counted(loopback):
    server = Server("m", loopback.url, top=1)
    (said,) = told(server, question(labels=AB))
    assert said.logps == (math.log(0.6), -math.inf) and server.seen["unlisted"] == 1


def test_an_answer_that_ends_before_it_begins_has_no_likelihoods(loopback):
    loopback.lists = "nothing"
    server = Server("m", loopback.url, endpoint="completions")
    (said,) = told(server, question("one", labels=AB))
    assert said.logps is None and said.calls == 3 and server.seen["unlistable"] == 1
    assert [body["temperature"] for _, body, _ in loopback.asked] == [1, 2, 2]  # drawn again before it is given up


def test_a_list_that_lost_a_token_is_asked_for_again_and_shorter(loopback):
    loopback.lists = "lossy"
    loopback.table = {"": dict(zip((" A", " B", "c", "d", "e", "f"), (0.5, 0.2, 0.1, 0.08, 0.07, 0.05), strict=True))}
    (said,) = told(Server("m", loopback.url, endpoint="completions"), question(labels=AB))
    assert exps(said) == pytest.approx([0.5, 0.2])
    assert [body["logprobs"] for _, body, _ in loopback.asked] == [20, 10, 5] and said.calls == 3


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_a_server_without_log_probs_is_found_out_by_one_request(loopback, endpoint):
    loopback.lists = False
    with pytest.raises(
        PrefoptError, match=r"gives no log-probs \(`transformers serve` has none.*use `mode: generative`"
    ):
        told(Server("m", loopback.url, endpoint=endpoint), *[question(f"q{n}", labels=AB) for n in range(20)])
    assert loopback.received == 1


# Failures


def test_what_may_pass_is_tried_again_seen_and_counted(loopback, caplog):
    loopback.faults = [429, 503, "drop", 500]
    server = Server("m", loopback.url)
    assert told(server, question(max_tokens=2))[0].text == "said: which?"
    assert server.seen["retries"] == 4 and server.seen["requests"] == 5 == loopback.received
    said = [r.getMessage().partition("retry ")[2] for r in caplog.records if r.name == "prefopt.feedback.judges.client"]
    assert said == [
        "1 of 5 after status 429",
        "2 of 5 after status 503",
        "3 of 5 after no answer",
        "4 of 5 after status 500",
    ]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (401, r"refuses the key \(401\): fault 401. None was sent: name the environment variable .* `key_env`"),
        (403, r"refuses the key \(403\)"),
        (
            404,
            r"no such model or address \(404\): fault 404. Look at `model` and `base_url`, which usually ends in /v1",
        ),
        (400, r"refuses the request \(400\): fault 400"),
        ((422, {"detail": "Unexpected fields"}), r"refuses the request \(422\): Unexpected fields"),
        (
            (200, "<html>hello</html>"),
            r"answered what cannot be read \(JSONDecodeError\): it is no JSON. Look at `model`",
        ),
        ((200, {"choices": {"a": 1}}), r"did not answer as OpenAI's does \(a reply without a list of `choices`\)"),
        (302, r"sends on to nowhere \(302\), and neither a key nor a text is sent there.*`base_url`"),
    ],
    ids=lambda value: str(value)[:12] if not isinstance(value, str) else "",
)
def test_what_will_not_pass_ends_it_at_once(loopback, fault, message):
    loopback.faults = [fault]
    with pytest.raises(PrefoptError, match=message):
        told(Server("m", loopback.url), *[question(f"q{n}", max_tokens=2) for n in range(9)])
    assert loopback.received == 1


def reply(content="8", finish_reason="stop", message=None, **more):
    message = {"role": "assistant", "content": content} | (message or {})
    choice = {"index": 0, "finish_reason": finish_reason, "message": message}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]} | more


@pytest.mark.parametrize(
    ("said", "retry"),
    [
        ({"error": {"message": "rate limited upstream", "code": 429}}, "429"),
        ({"error": {"message": "Provider returned error", "code": 502}}, "502"),
        ({"error": "busy"}, "502"),
        ({"choices": [{"error": {"code": 503, "message": "x"}, "finish_reason": "error"}]}, "503"),
        (reply() | {"choices": []}, "503"),
        ({}, "503"),
    ],
    ids=str,
)
def test_an_error_with_status_200_is_the_error_that_it_names(loopback, caplog, said, retry):
    loopback.faults = [(200, said)]
    assert told(Server("m", loopback.url), question(max_tokens=9))[0].text == "said: which?"
    assert f"retry 1 of 5 after status {retry}" in caplog.text
    loopback.faults = [(200, said)] * 2
    with pytest.raises(
        PrefoptError, match=rf"{loopback.url} still .*\({retry}, with status 200 and .* after 1 retries"
    ):
        told(Server("m", loopback.url, retries=1), question(max_tokens=9))


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ((200, reply("8", "content_filter")), "filtered"),
        ((200, reply(None, "tool_calls")), "called_tools"),
        ((200, reply("8", None)), "unfinished"),
        ((200, reply("8", "abort")), "unfinished"),
        ((200, reply(None, "length", {"reasoning_content": "hm"})), "thinking"),
        ((200, reply("<think> let me", "stop")), "thinking"),
        ((200, reply("  \n")), "empty"),
        ((400, {"error": {"message": "The response was filtered", "code": "content_filter"}}), "filtered"),
        (
            (400, {"error": {"message": "Invalid prompt: your prompt was flagged", "code": "invalid_prompt"}}),
            "filtered",
        ),
        (
            (403, {"error": {"message": "Your input was flagged", "code": 403, "metadata": {"reasons": ["x"]}}}),
            "filtered",
        ),
        (
            (200, {"error": {"message": "x", "code": 400, "innererror": {"code": "ResponsibleAIPolicyViolation"}}}),
            "filtered",
        ),
        ((400, {"error": {"message": "maximum context length is 5 tokens", "code": None}}), "too_long"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_no_answer_is_not_taken_for_one_nor_kept_and_ends_nothing(loopback, tmp_path, fault, why):
    server = Server("m", loopback.url, concurrency=1)
    memory = Memory(server, tmp_path)
    loopback.faults = [None, fault]
    questions = [question(f"q{n}", max_tokens=9) for n in range(3)]
    assert [a.missing for a in memory.answers(questions)] == [None, why, None]
    assert server.seen[why] == 1
    assert [a.text for a in memory.answers(questions)] == ["said: q0", "said: q1", "said: q2"], "it is asked anew"
    assert len(loopback.asked) == 3 and memory.spent.hits == 2


def test_a_text_that_is_cut_off_says_so_and_is_asked_for_anew(loopback, tmp_path):
    memory = Memory(Server("m", loopback.url), tmp_path)
    loopback.faults = [(200, reply("8", "length"))]
    assert memory.answers([question(max_tokens=9)])[0].cut_off
    assert memory.answers([question(max_tokens=9)])[0].text == "said: which?"


def test_a_refusal_that_repeats_the_question_is_no_filter(loopback):
    loopback.faults = [(422, {"detail": [{"input": "what a content filter is", "msg": "extra field"}]})]
    with pytest.raises(PrefoptError, match=r"refuses the request \(422\)"):
        told(Server("m", loopback.url), question(max_tokens=9))


def test_thinking_is_cut_off(loopback):
    loopback.faults = [
        (200, reply("<think>Score: 9?</think>\n2")),
        (200, reply("2", message={"reasoning": "Score: 9"})),
    ]
    said = told(Server("m", loopback.url, concurrency=1), question("a", max_tokens=9), question("b", max_tokens=9))
    assert [answer.text for answer in said] == ["\n2", "2"]


def tops(*entries):
    several = [{"token": token, "logprob": logp, "bytes": None} for token, logp in entries]
    return {"content": [{"token": "x", "logprob": -1.0, "top_logprobs": several}]}


@pytest.mark.parametrize(
    ("logprobs", "message"),
    [
        (tops((" A", 5.0)), "log-probs that are none: ' A' has 5, and no log-prob is above 0"),
        (tops((" A", math.inf)), "' A' has inf"),
        (tops((" A", -0.1), (" B", -0.1)), "together its tokens are more than certain"),
        (tops((" A", "-0.1")), "log-probs that are no numbers: ' A' has a str"),
        (tops((" A", None)), "has null"),
        (tops((None, -0.1)), "a token that is null"),
        ({"content": [{"token": "x", "top_logprobs": None}]}, "without lists of the likeliest tokens"),
        ({"content": [1, 2]}, "without lists"),
        ([1, 2], "`logprobs` that are a list"),
        (tops(("<think>", -0.1), (" A", -9.0)), "thinks before it answers.*enable_thinking: false"),
    ],
    ids=str,
)
def test_what_is_no_likelihood_becomes_no_score(loopback, logprobs, message):
    said = reply()
    said["choices"][0]["logprobs"] = logprobs
    loopback.faults = [(200, said)]
    with pytest.raises(PrefoptError, match=f"{loopback.url} .*{message}|{message}"):
        told(Server("m", loopback.url), question(labels=AB))


def test_a_likelihood_that_is_not_a_number_is_no_verdict(loopback):
    said = reply()
    said["choices"][0]["logprobs"] = tops((" A", math.nan), (" B", -1.0))
    loopback.faults = [(200, said)]
    assert told(Server("m", loopback.url), question(labels=AB))[0].missing == "not_a_number"


@pytest.mark.parametrize("choice", [None, "hi", 3, {"message": None}, {"message": {"content": 17}}, {"index": 0}])
def test_a_malformed_choice_names_the_address(loopback, choice):
    choice = choice | {"finish_reason": "stop"} if isinstance(choice, dict) else choice
    loopback.faults = [(200, reply() | {"choices": [choice]})]
    with pytest.raises(PrefoptError, match=f"the judge's server {loopback.url} (answers with|did not answer)"):
        told(Server("m", loopback.url), question(max_tokens=9))


@pytest.mark.parametrize(
    "usage", [{"prompt_tokens": -5, "completion_tokens": "one"}, {}, None, [1], {"prompt_tokens": math.nan}]
)
def test_usage_that_is_none_counts_nothing(loopback, usage):
    loopback.faults = [(200, reply(usage=usage))]
    (said,) = told(Server("m", loopback.url), question(max_tokens=9))
    assert (said.prompt_tokens, said.completion_tokens, said.calls) == (0, 0, 1)


def test_a_server_that_sends_a_byte_at_a_time_is_not_waited_for(loopback):
    loopback.faults = ["drip"]
    with pytest.raises(PrefoptError, match=r"did not answer within 0.3 seconds, 1 times. Raise `timeout`"):
        told(Server("m", loopback.url, retries=0, timeout=0.3), question(max_tokens=2))


def test_advice_for_a_server_that_does_not_continue(loopback):
    loopback.faults = [(422, {"detail": "Unexpected keys in the request: {'continue_final_message'}"})]
    with pytest.raises(PrefoptError, match=r"\(422\).*`starts: ask`.*`endpoint: completions`"):
        told(Server("m", loopback.url, starts="continue"), question(start="Score:", max_tokens=2))


def test_a_chat_whose_template_has_no_system_turn_gets_its_text_before_the_first_user_turn(loopback):
    loopback.faults = [(400, {"error": {"message": "System role not supported"}})]
    server = Server("m", loopback.url)
    told(server, question(max_tokens=2), question("next", max_tokens=2))
    turns = [body["messages"] for _, body, _ in loopback.asked]
    assert turns == [[{"role": "user", "content": f"You judge.\n\n{text}"}] for text in ("which?", "next")]


def test_chat_template_kwargs_are_sent_and_part_of_the_key(loopback):
    server = Server("m", loopback.url, chat_template_kwargs={"enable_thinking": False})
    told(server, question(max_tokens=2))
    assert loopback.asked[0][1]["chat_template_kwargs"] == {"enable_thinking": False}
    assert server.identity != Server("m", loopback.url).identity


def test_retries_end(loopback):
    loopback.faults = [500] * 9
    with pytest.raises(
        PrefoptError, match=r"still fails \(500\) after 2 retries: fault 500. What was answered is kept"
    ):
        told(Server("m", loopback.url, retries=2), question(max_tokens=2))
    loopback.faults = [429] * 9
    with pytest.raises(
        PrefoptError, match=r"still limits requests \(429\) after 1 retries: fault 429. Lower `concurrency`"
    ):
        told(Server("m", loopback.url, retries=1), question(max_tokens=2))


def test_a_hanging_server_is_not_waited_for(loopback):
    loopback.faults = ["hang", "hang"]
    with pytest.raises(PrefoptError, match=r"did not answer within 0.1 seconds, 2 times. Raise `timeout`"):
        told(Server("m", loopback.url, retries=1, timeout=0.1), question(max_tokens=2))
    loopback.faults = ["hang"]
    assert told(Server("m", loopback.url, retries=1, timeout=0.1), question(max_tokens=2))[0].text == "said: which?"


def test_no_server():
    with Loopback().running() as gone:
        pass
    with pytest.raises(PrefoptError, match=r"is not there, after 1 retries \(.*refused.*\). Is it running\?"):
        told(Server("m", gone.url, retries=1), question(max_tokens=2))


def test_a_question_that_is_too_long_has_an_empty_answer(loopback):
    error = {"error": {"message": "This model's maximum context length is 8 tokens", "code": "context_length_exceeded"}}
    loopback.faults = [None, (400, error)]
    server = Server("m", loopback.url, concurrency=1)
    said = told(server, *[question(f"q{n}", max_tokens=2) for n in range(3)])
    assert [one.text for one in said] == ["said: q0", None, "said: q2"]
    assert server.seen["too_long"] == 1


def test_requests_go_out_together_but_not_too_many(loopback):
    loopback.seconds = 0.05
    told(Server("m", loopback.url, concurrency=4), *[question(f"q{n}", max_tokens=2) for n in range(17)])
    assert loopback.busiest == 4


def test_a_server_killed_midway_is_gone_on_with_and_nothing_is_paid_twice(tmp_path, caplog):
    server = Loopback(seconds=0.01)
    questions = [question(f"q{n}", max_tokens=2) for n in range(30)]
    server.stop_after = 11
    with server.running():
        backend = Server("m", server.url, retries=2, concurrency=4)
        with pytest.raises(PrefoptError, match=r"is not there, after 2 retries .*What was answered is kept"):
            Memory(backend, tmp_path).answers(questions)
    assert len(server.asked) == 11
    assert backend.seen["retries"] >= 2 and "retry 1 of 2 after no answer" in caplog.text
    server.stop_after = None
    with server.running():
        memory = Memory(Server("m", server.url), tmp_path)
        assert [answer.text for answer in memory.answers(questions)] == [f"said: q{n}" for n in range(30)]
    assert memory.spent.hits == 11 and memory.spent.calls == 19
    assert len(server.asked) == 30 == len({body["messages"][-1]["content"] for _, body, _ in server.asked})


def test_a_budget_in_tokens_over_a_server(tmp_path, loopback):
    memory = Memory(Server("m", loopback.url), tmp_path, Budget(tokens=25))
    with pytest.raises(PrefoptError, match="budget of 25 tokens is spent: 12 calls, 12 tokens read and 12 written"):
        memory.answers([question(f"q{n}", max_tokens=2) for n in range(30)])
    assert len(loopback.asked) == 12


def test_answers_that_are_not_wanted_any_more_end_the_requests(loopback):
    asking = Server("m", loopback.url, concurrency=2).ask([question(f"q{n}", max_tokens=2) for n in range(50)])
    next(asking), next(asking)
    asking.close()
    assert loopback.received < 10


# Keys


def test_the_key_is_sent_and_told_to_nobody(loopback, monkeypatch, tmp_path, caplog, capsys):
    monkeypatch.setenv("MY_KEY", f" {KEY}\n")
    caplog.set_level(logging.DEBUG)
    server = Server("m", loopback.url, key_env="MY_KEY", retries=1)
    memory = Memory(server, tmp_path)
    memory.answers([question(max_tokens=2)])
    assert loopback.asked[0][2] == f"Bearer {KEY}"
    failures = []
    for fault in [401, 400, 429, 500]:
        loopback.faults = [(fault, {"error": {"message": f"Incorrect API key provided: {KEY}."}})] * 2
        with pytest.raises(PrefoptError, match=r"\*\*\*") as caught:
            memory.answers([question(str(fault), max_tokens=2)])
        error = caught.value
        assert error.__context__ is None and error.__cause__ is None
        failures += traceback.format_exception(error, chain=True)
    everywhere = [
        repr(server), str(server), repr(memory), str(server.identity), str(vars(server)), caplog.text, *capsys.readouterr(),
        *failures, *(file.read_bytes().decode("latin-1") for file in tmp_path.iterdir()),
    ]  # fmt: skip
    assert len(caplog.records) > 20
    assert not [text for text in everywhere if KEY in text]


def test_a_local_server_needs_no_key(loopback):
    told(Server("m", loopback.url), question(max_tokens=2))
    assert loopback.asked[0][2] is None


@pytest.mark.parametrize("fields", [{}, {"key_env": None}, {"key_env": "NOT_SET"}])
def test_openais_key_goes_to_no_address_that_does_not_name_it(loopback, monkeypatch, fields):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_ADMIN_KEY", KEY)
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-somebody")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-of-somebody")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"x-own: {KEY}")
    server = Server("m", loopback.url, **fields)
    server.listed()
    told(server, question(max_tokens=2))
    assert len(loopback.headers) == 2
    sent = {f"{name}: {value}" for headers in loopback.headers for name, value in headers.items()}
    assert not [line for line in sent if KEY in line or "somebody" in line]


@pytest.mark.parametrize(
    "name", ["OPENAI_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "WANDB_API_KEY"]
)
def test_a_providers_key_goes_to_its_provider_alone(monkeypatch, name):
    monkeypatch.setenv(name, KEY)
    with pytest.raises(
        PrefoptError, match=rf"\${name} is not sent to https://example.org/v1.*export JUDGE_KEY"
    ) as error:
        Server("m", "https://example.org/v1", key_env=name).check()
    assert KEY not in str(error.value)


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("OPENAI_API_KEY", "https://eu.api.openai.com/v1"),
        ("HF_TOKEN", "https://router.huggingface.co/v1"),
        ("OPENROUTER_API_KEY", "https://openrouter.ai/api/v1"),
        ("JUDGE_KEY", "https://example.org/v1"),
        ("OPENAI_API_KEY", "http://localhost:8000/v1"),
    ],
)
def test_a_key_goes_where_it_belongs_or_is_said_to_go(monkeypatch, name, url):
    monkeypatch.setenv(name, KEY)
    server = Server("m", url, key_env=name)
    server.check()
    assert server._key_env == name


@pytest.mark.parametrize("url", ["https://openai.com.example.org/v1", "https://notopenai.com/v1"])
def test_an_address_that_looks_like_openais_is_not(monkeypatch, url):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert Server("m", url)._key_env is None


def test_a_redirect_takes_neither_key_nor_text_along(loopback, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    with Loopback().running() as other:
        loopback.location = f"{other.url}/chat/completions?secret=1"
        loopback.faults = [307]
        with pytest.raises(PrefoptError, match=rf"sends on to {other.url}/chat/completions \(307\)"):
            told(Server("m", loopback.url, key_env="MY_KEY"), question(max_tokens=2))
        assert not other.received


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"base_url": OPENAI}, r"OpenAI wants a key: set \$OPENAI_API_KEY"),
        ({"base_url": "http://[::1/v1"}, r"server.base_url is no address: 'http://\[::1/v1'"),
        ({"base_url": "http://localhost:99999/v1"}, "server.base_url is no address"),
        ({"base_url": "localhost:8000"}, "must be like http://localhost:8000/v1, not 'localhost:8000'"),
        ({"base_url": f"https://me:{KEY}@example.org/v1"}, "must hold neither password nor key"),
        ({"base_url": f"https://example.org/v1?key={KEY}"}, "must hold neither password nor key"),
        (
            {"base_url": "http://example.org/v1", "key_env": "MY_KEY"},
            r"\$MY_KEY would go to http://example.org/v1 for all to read",
        ),
        ({"base_url": "https://example.org/v1", "key_env": "BAD_KEY"}, r"\$BAD_KEY holds is no key"),
        ({"base_url": "http://localhost/v1", "template": "x"}, "server.template is for `endpoint: completions`"),
        ({"base_url": "http://localhost/v1", "template": "./x", "endpoint": "completions"}, "no model at ./x"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_work_is_refused_before_anything_is_sent(fields, message, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    monkeypatch.setenv("BAD_KEY", f"{KEY}\nX-Injected: 1")
    with pytest.raises(PrefoptError, match=message) as caught:
        Server("m", **fields).check()
    assert KEY not in str(caught.value)


def test_fields_of_a_recipe_are_checked():
    server = checked_fields(Server("m", "http://localhost:1/v1", timeout="30", concurrency="2"), "server")
    assert (server.timeout, server.concurrency) == (30.0, 2)
    with pytest.raises(PrefoptError, match="server: field 'retries' must be greater than or equal to 0, got -1"):
        checked_fields(Server("m", retries=-1), "server")
