"""Prompts of one turn, and a reward that an answer of twenty words has most of."""

THINGS = (
    "bread soap rain paper glass tea cheese ink snow honey steel sand salt wine wool wax milk rubber chalk silk "
    "a bicycle a kite a clock a lamp a bridge a violin a compass a ladder a sail a kettle a hammer a needle"
).replace(" a ", "|a ")
QUESTIONS = ("How is {} made?", "What is {} used for?")


def prompts(n: int = 64) -> list[dict]:
    first, *rest = THINGS.split("|")
    every = [question.format(thing) for thing in (*first.split(), *rest) for question in QUESTIONS]
    return [{"prompt": [{"role": "user", "content": text}]} for text in every[:n]]


def twenty_words(prompts, completions, rows):
    return [[1 - abs(len(text.split()) - 20) / 20 for text in of_prompt] for of_prompt in completions]
