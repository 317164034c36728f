"""The grammar of opinions: what a text is made of, how to write one at random, and how to parse one.

    opinion   → sentence⁺
    sentence  → ["although" statement ","] statement {("and" | "but") statement} "."
    statement → stance statement | claim                                        perhaps · i doubt that · ...
    claim     → subject "was" [negation] [degree] adjective                     the soup was not very good
              | "i" verb subject  |  "i" "did" "not" verb subject               i loved the soup
    subject   → "the" aspect | "the" topic | "it"

An adjective must go with the kind of its subject, an aspect with the topic. Parsing undoes rendering: `parse(topic,
str(opinion)) == opinion`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from . import lexicon
from .requests import Request

STANCES = {tuple(phrase.split()): phrase for phrase in lexicon.STANCES}
BASE_FORMS = {base: past for past, (base, _) in lexicon.VERBS.items()}


@dataclass(frozen=True)
class Claim:
    """One valued thing said of one aspect. `word` is an adjective, or the past form of a verb."""

    noun: str
    word: str
    negation: str = ""
    degree: str = ""

    def __str__(self) -> str:
        subject = self.noun if self.noun == lexicon.WHOLE else f"the {self.noun}"
        if self.word not in lexicon.VERBS:
            return " ".join(filter(None, (subject, "was", self.negation, self.degree, self.word)))
        verb = f"did not {lexicon.VERBS[self.word][0]}" if self.negation else self.word
        return f"i {verb} {subject}"


@dataclass(frozen=True)
class Held:
    """A statement under a stance: a hedge, a doubt, somebody else's word."""

    stance: str
    statement: "Claim | Held"

    def __str__(self) -> str:
        return f"{self.stance} {self.statement}"


Statement = Claim | Held


@dataclass(frozen=True)
class Sentence:
    """Statements with what joins each to those before it: "", "although", "and", "but"."""

    parts: tuple[tuple[str, Statement], ...]

    def __str__(self) -> str:
        words = []
        for joint, statement in self.parts:
            words += [f"although {statement} ,"] if joint == "although" else [joint, str(statement)]
        return " ".join(filter(None, [*words, "."]))


@dataclass(frozen=True)
class Opinion:
    """Sentences about one topic."""

    sentences: tuple[Sentence, ...]

    def __str__(self) -> str:
        return " ".join(map(str, self.sentences))


class OffGrammar(ValueError):  # noqa: N818 (it is a verdict on a text, not a failure)
    """The text is not an opinion on the topic; the message says where it stopped being one."""


def parse(topic: str, text: str) -> Opinion:
    """The opinion that a text is.

    Raises:
        OffGrammar: it is none, or it speaks of something else.
    """
    return _Parser(topic, lexicon.tokens(text)).opinion()


@dataclass
class _Parser:
    """Recursive descent with one function for each rule of the grammar."""

    topic: str
    words: list[str]
    place: int = 0

    def opinion(self) -> Opinion:
        sentences = [self.sentence()]
        while self.place < len(self.words):
            sentences.append(self.sentence())
        return Opinion(tuple(sentences))

    def sentence(self) -> Sentence:
        parts: list[tuple[str, Statement]] = []
        if self.accept("although"):
            parts.append(("although", self.statement()))
            self.expect(",")
        parts.append(("", self.statement()))
        while joint := self.accept("and", "but"):
            parts.append((joint, self.statement()))
        self.expect(".")
        return Sentence(tuple(parts))

    def statement(self) -> Statement:
        for words, phrase in STANCES.items():
            if tuple(self.words[self.place : self.place + len(words)]) == words:
                self.place += len(words)
                return Held(phrase, self.statement())
        return self.claim()

    def claim(self) -> Claim:
        if self.accept("i"):
            if self.accept("did"):
                negation = self.expect("not")
                return self.of_subject(BASE_FORMS[self.expect(*BASE_FORMS)], negation)
            return self.of_subject(self.expect(*lexicon.VERBS), "")
        noun = self.subject()
        self.expect("was")
        negation, degree = self.accept(*lexicon.NEGATIONS), self.accept(*lexicon.DEGREES)
        adjective = self.expect(*lexicon.adjectives(self.topic, str(lexicon.kind_of(self.topic, noun))))
        return Claim(noun, adjective, negation, degree)

    def of_subject(self, verb: str, negation: str) -> Claim:
        return Claim(self.subject(), verb, negation)

    def subject(self) -> str:
        if self.accept(lexicon.WHOLE):
            return lexicon.WHOLE
        self.expect("the")
        return self.expect(self.topic, *lexicon.aspects(self.topic))

    def accept(self, *words: str) -> str:
        if self.place < len(self.words) and self.words[self.place] in words:
            self.place += 1
            return self.words[self.place - 1]
        return ""

    def expect(self, *words: str) -> str:
        if word := self.accept(*words):
            return word
        found = self.words[self.place] if self.place < len(self.words) else "the end"
        raise OffGrammar(f"word {self.place + 1}: {found!r}, where one of these may stand: {', '.join(words)}")


@dataclass(frozen=True)
class Habits:
    """The probabilities of the writer whose texts the LM learns from."""

    short: tuple[float, ...] = (0.65, 0.35)
    usual: tuple[float, ...] = (0.2, 0.45, 0.25, 0.1)
    detailed: tuple[float, ...] = (0.05, 0.3, 0.4, 0.25)
    """of 1, 2, ... statements in an opinion, by what the prompt asks for."""
    moods: tuple[float, ...] = (0.38, 0.16, 0.46)
    """against, undecided, in favour."""
    steady: float = 0.85
    """a statement agrees with the mood."""
    hint: float = 0.8
    """the aspect that the prompt asks for comes first."""
    fresh: float = 0.9
    """an aspect has not been spoken of yet."""
    whole: float = 0.12
    """the subject is the topic itself."""
    stance: float = 0.2
    """a statement is held under a stance, and that under another."""
    verb: float = 0.15
    negation: float = 0.15
    degree: float = 0.35
    join: float = 0.6
    """a statement joins the sentence before it, rather than starting a new one."""
    concession: float = 0.3
    """a contrast is put as "although ... ," rather than "but"."""
    apt: float = 0.92
    """"but" stands between statements that differ, "and" between those that agree."""


HABITS = Habits()


def write(request: Request, random: Random, habits: Habits = HABITS) -> Opinion:
    """A random opinion, as a prompt asks for it, more or less."""
    lengths = {"short": habits.short, "detailed": habits.detailed}.get(request.length, habits.usual)
    count = 1 + random.choices(range(len(lengths)), lengths)[0]
    mood = random.choices((-1, 0, 1), habits.moods)[0]
    nouns = list(_nouns(request, count, random, habits))
    signs = [mood if mood and random.random() < habits.steady else random.choice((-1, 1)) for _ in nouns]
    statements = [
        _statement(request.topic, noun, sign, random, habits) for noun, sign in zip(nouns, signs, strict=True)
    ]

    sentences: list[list[tuple[str, Statement]]] = [[("", statements[0])]]
    for i in range(1, count):
        if random.random() > habits.join:
            sentences.append([("", statements[i])])
            continue
        contrast = (signs[i] != signs[i - 1]) == (random.random() < habits.apt)
        if contrast and len(sentences[-1]) == 1 and random.random() < habits.concession:
            sentences[-1] = [("although", sentences[-1][0][1]), ("", statements[i])]
        else:
            sentences[-1].append(("but" if contrast else "and", statements[i]))
    return Opinion(tuple(Sentence(tuple(parts)) for parts in sentences))


def _nouns(request: Request, count: int, random: Random, habits: Habits) -> Iterator[str]:
    left = list(lexicon.aspects(request.topic))
    for i in range(count):
        if i == 0 and request.hint and random.random() < habits.hint:
            noun = request.hint
        elif random.random() < habits.whole:
            noun = random.choice((request.topic, lexicon.WHOLE))
        else:
            noun = random.choice(left if random.random() < habits.fresh else lexicon.aspects(request.topic))
        if noun in left:
            left.remove(noun)
        yield noun


def _statement(topic: str, noun: str, sign: int, random: Random, habits: Habits) -> Statement:
    """A statement whose value has this sign, whatever negations and doubts it is wrapped in."""
    if random.random() < habits.stance:
        stance = random.choice(list(lexicon.STANCES))
        turned = -sign if lexicon.STANCES[stance] < 0 else sign
        return Held(stance, _statement(topic, noun, turned, random, habits))
    negation = random.choice(list(lexicon.NEGATIONS)) if random.random() < habits.negation else ""
    degree = random.choice(list(lexicon.DEGREES)) if random.random() < habits.degree else ""
    wanted = -sign if negation else sign
    words: lexicon.Valences
    if random.random() < habits.verb:
        words, negation, degree = {past: v for past, (_, v) in lexicon.VERBS.items()}, "not" if negation else "", ""
    else:
        words = lexicon.adjectives(topic, str(lexicon.kind_of(topic, noun)))
    fitting = [word for word, valence in words.items() if valence * wanted > 0]
    # Strong words are rare, so that there is something left to learn from a reward.
    return Claim(noun, random.choices(fitting, [1.1 - abs(words[word]) for word in fitting])[0], negation, degree)
