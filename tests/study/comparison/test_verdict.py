"""The verdict: the numbers of the tables in the figures of the tables, and with many arms what can still be read."""

import io
import re

import numpy as np
import pytest
from _folders import study

from prefopt.study.comparison.compare import compare
from prefopt.study.report import show
from prefopt.study.report.contents import cells_and_reasons
from prefopt.support.terminal import Terminal

SMALL = {"a": [0.0, 0.001, 0.002, 0.001], "b": [0.0039, 0.0046, 0.0061, 0.0042], "c": [0.46, -0.2, 0.4, 0.1]}
"""Differences of .00370 and .189, on which formats of fewer figures or none at the end would disagree."""


@pytest.mark.parametrize("against", ["baseline", "best", "all"])
def test_verdict_and_table_print_the_same_strings(tmp_path, against):
    found = compare([study(tmp_path, SMALL)], against=against)
    printed = {text for row in found.primary.rows for cell, _ in cells_and_reasons(row) for text in numbers(cell)}
    said = {text for text in numbers(found.sentences[0]) if "." in text}
    assert said and {text.lstrip("+−") for text in said} <= {text.lstrip("+−") for text in printed}


def numbers(text: str) -> list[str]:
    return re.findall(r"[+−]?\d[\d.]*(?:e[+−]\d+)?", text)


def many(arms: int = 12) -> dict[str, list[float | None]]:
    """A baseline at 0, arms around it, each further apart than the one before; one failed once, one is a copy."""
    noise = np.random.default_rng(0).normal(size=(arms, 5))
    golds = {f"arm{n}": [*(0.1 * (n - 5) * (n > 2) + 0.05 * noise[n] + 0.02 * noise[0])] for n in range(arms)}
    return golds | {"arm11": [0.9, None, 0.8, 1.0, 0.9], "arm10": golds["arm0"]}


def test_of_many_arms_it_counts_names_the_best_and_lists_the_others(tmp_path):
    found = compare([study(tmp_path, many())])
    first, *lists, source, prompts = found.sentences
    rows = {
        claim: [row.arm for row in found.primary.rows if row.claim == claim]
        for claim in ("better", "worse", "undecided")
    }
    best = next(row for row in found.primary.rows if row.arm == "arm9")
    cells = [cell for cell, _ in cells_and_reasons(best)]
    higher, lower, undecided = map(len, rows.values())
    ahead = f"arm9 ({cells[3].split()[0]} {cells[4]})"
    assert first == (
        f"Against arm0, on gold: of 11 arms, {higher} higher, {lower} lower, {undecided} undecided, 1 with the same numbers, "
        f"1 with failures; higher by most: {ahead}."
    )
    assert rows["better"][-1] == "arm9" and len(rows["better"]) > 1
    assert [sentence.partition(":")[0] for sentence in lists] == [
        *("Higher", "Lower", "Undecided, with too few seeds to say", "Exactly the same numbers"),
        "No claim, for the difference favours the side that lost seeds",
    ]
    assert lists[-1].endswith("arm11 (1 of 5 seeds have no number).")
    named = re.findall(r"arm\d+", " ".join(lists))
    assert sorted(named) == sorted(found.arms[1:])  # each once
    assert source.startswith("(From intervals that hold together for all 11 arms") and prompts.startswith("With other")


def test_of_many_arms_none_of_which_is_higher_no_arm_is_called_the_best(tmp_path):
    golds = {
        arm: [-value if value else value for value in values]
        for arm, values in many().items()
        if arm not in ("arm3", "arm4")
    }
    first = compare([study(tmp_path, golds)]).sentences[0]
    assert "none higher" in first and "by most" not in first
    lower = compare([study(tmp_path / "low", many())], better="lower").sentences[0]
    assert re.search(r"\d lower, \d higher, .*; lower by most: arm3 \(−", lower)


def test_of_many_arms_against_the_best(tmp_path):
    first, *lists, source = compare(
        [study(tmp_path, many(9) | {"arm8": [0.31, 0.3, 0.33, 0.28, 0.3]})], against="best"
    ).sentences[:4]
    assert re.match(
        r"On gold: arm\d has the best mean; of the other 10 arms, \d+ may be the best as well, \d+ (is|are) not\.",
        first,
    )
    assert [one.partition(":")[0] for one in lists] == ["May be the best as well", "Not the best"]
    assert source.startswith("(From")


def test_of_many_pairs_each_arm_is_named_with_those_below_it(tmp_path):
    found = compare([study(tmp_path, many())], against="all")
    first, *lists, rest = found.sentences[
        : found.sentences.index(next(s for s in found.sentences if s.startswith("(From")))
    ]
    shown = [pair for pair in found.primary.pairs if pair.claim in ("better", "worse")]
    assert first.startswith(
        f"Of all 66 pairs, on gold: a difference is shown in {len(shown)}; none is shown to be higher than "
    )
    assert sum(len(re.findall(r"arm\d+", one)) - 1 for one in lists) == len(shown)
    assert rest == "Between the others no difference is shown; results.json has every interval."


def test_with_one_seed_many_arms_have_nothing_claimed(tmp_path):
    first, *more = compare([study(tmp_path, {arm: values[:1] for arm, values in many().items()})]).sentences
    assert first == "Against arm0, on gold: of 11 arms, none higher, 11 with fewer than two seeds in common."
    assert more[-1].startswith("The table says how the policies of the one seed differ")


@pytest.mark.parametrize("width", [50, 80])
def test_in_a_terminal_each_sentence_has_a_line_of_its_own(tmp_path, width):
    found = compare([study(tmp_path, many())])
    console = Terminal(file=io.StringIO(), width=width)
    show(console, found)
    lines = [line.strip() for line in console.file.getvalue().splitlines()]
    below = lines[lines.index("") :]  # the table
    for sentence in found.sentences:
        assert any(line and sentence.startswith(line) for line in below), sentence
