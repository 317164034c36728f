from random import Random

import pytest

from prefopt.testbeds.pocket import lexicon
from prefopt.testbeds.pocket.grammar import Claim, Held, OffGrammar, Opinion, Sentence, parse, write
from prefopt.testbeds.pocket.requests import draw


def test_parsing_undoes_writing():
    random = Random(0)
    for request in draw(1000, 0, "all"):
        opinion = write(request, random)
        assert parse(request.topic, str(opinion)) == opinion


def test_writer_says_what_the_mood_wants_under_any_nesting_of_stances_and_negations():
    from prefopt.testbeds.pocket.grammar import Habits
    from prefopt.testbeds.pocket.reward import value_of

    random, habits = Random(0), Habits(moods=(0, 0, 1), steady=1, stance=0.4, negation=0.5)
    nested = 0
    for request in draw(300, 1, "all"):
        for sentence in write(request, random, habits).sentences:
            for _, statement in sentence.parts:
                nested += isinstance(statement, Held) and isinstance(statement.statement, Held)
                assert value_of(request.topic, statement) > 0, str(statement)
    assert nested > 20


def test_tree_of_a_sentence_with_everything():
    text = "although perhaps i doubt that the bed was not very good , i did not like the hotel but it was cosy ."
    with pytest.raises(OffGrammar, match="word 22: 'cosy'"):  # the topic as a whole is no place
        parse("hotel", text)
    tree = parse("hotel", text.replace("it was cosy", "the room was cosy and it was quiet"))
    bed = Held("perhaps", Held("i doubt that", Claim("bed", "good", "not", "very")))
    parts = ("although", bed), ("", Claim("hotel", "liked", "not")), ("but", Claim("room", "cosy"))
    assert tree == Opinion((Sentence((*parts, ("and", Claim("it", "quiet")))),))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "the room was clean",
        "the room was clean . and",
        "room was clean .",
        "the room clean .",
        "the room was very very clean .",
        "the room was .",
        "the soup was good .",  # another topic's
        "the film was good .",
        "the room was rude .",  # a person's
        "the room was clean . the room was",
        "although the room was clean .",
        "i loved .",
        "i did love the room .",
        "i did not loved the room .",
        "i doubt that .",
        "the room was clean . => good",
        "The room was clean .",
        "the room was clean . <unk>",
    ],
)
def test_text_that_is_no_opinion_on_the_topic(text):
    with pytest.raises(OffGrammar):
        parse("hotel", text)


def test_spaces_do_not_matter():
    assert parse("hotel", "the room was clean.") == parse("hotel", "  the room  was clean .\n")


def test_message_says_where_and_what_may_stand_there():
    with pytest.raises(OffGrammar, match=r"word 2: 'soup', where one of these may stand: hotel, receptionist"):
        parse("hotel", "the soup was good .")


def test_lexicon_is_consistent():
    owners = [noun for topic in lexicon.NOUNS for noun in lexicon.aspects(topic)]
    assert len(owners) == len(set(owners)), "a noun of two topics would be off-topic under neither"
    assert not set(owners) & set(lexicon.NOUNS)
    assert set(lexicon.TASTE) == set(lexicon.NOUNS)
    tables = [lexicon.ANY, *lexicon.KINDS.values(), {word: 0.5 for axis in lexicon.AXES for word in axis}]
    adjectives = [word for table in tables for word in table]
    assert len(adjectives) == len(set(adjectives)), "an adjective with two valences"
    assert all(0 < abs(v) < 1 for table in tables for v in table.values())


def test_tastes_differ_between_topics():
    assert lexicon.adjectives("hotel", "place")["quiet"] == 0.5
    assert lexicon.adjectives("restaurant", "place")["quiet"] == -0.5
    assert lexicon.adjectives("restaurant", "place")["lively"] == 0.5
