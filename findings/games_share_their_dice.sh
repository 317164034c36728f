#!/usr/bin/env bash
# Seen in textarena 0.7.4.
#
# `env.reset(num_players=..., seed=...)` seeds Python's `random` for the whole process, and games go on drawing from there: dice, cards that
# are dealt later, moves of random opponents. The seed is thus of the process and not of the game. A game that is played alone comes
# out the same every time, which is what one tests. Played in turn with another, as a batch of episodes is, each takes draws that the
# other would have had: with the same seed and the same moves, it has other dice. Nor do two games of one seed, the group of a
# prompt in GRPO, face the same dice. And whatever else draws from `random` in the process starts over with each game.
#
# Why it matters here: an advantage that compares the episodes of a group takes them for tries at one task, and an episode that depends
# on what was played beside it cannot be played again. prefopt keeps Python's, NumPy's and torch's generators of each environment apart from
# all others while it is called, so that an episode is a function of its row, its seed and the policy's moves; somebody who drives
# TextArena from a loop of their own has to do that, or give each game a process.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check textarena==0.7.4
cd "$folder"
changed=0
"$folder/venv/bin/python" - <<'PYTHON' 2> "$folder/warnings.txt" > "$folder/seen.txt" || changed=1
import random
import re
import sys

import textarena


def begun(seed):
    game = textarena.make("PigDice-v0")
    game.reset(num_players=2, seed=seed)
    return game


def played(*games):
    """The dice of the first game. All are played in turn, four moves each, and every move is a roll."""
    dice = []
    for _ in range(4):
        for game in games:
            game.get_observation()
            game.step("[roll]")
        _, text = games[0].get_observation()
        history = re.findall(r"Your roll history for this turn: (.*)|(first roll of your turn)", text)[-1][0]
        dice.append(int(re.findall(r"\d", history)[-1]) if history else 1)  # a one ends the turn
    return dice


def draw_after(seed):
    begun(seed)
    return random.random()


found = {
    "alone": played(begun(3)),
    "alone, again": played(begun(3)),
    "in turn with a game of another seed": played(begun(3), begun(4)),
    "in turn with a game of the same seed": played(begun(3), begun(3)),
}
for name, dice in found.items():
    print(f"a game with seed 3, {name:<37} rolls {dice}")
same = draw_after(3) == draw_after(3)
print(f"random.random() after reset(seed=3), twice: {'the same number' if same else 'two numbers'}")
alone, again, other, twin = found.values()
sys.exit(0 if alone == again and alone != other and alone != twin and same else 1)
PYTHON
cat "$folder/seen.txt"
[ $changed = 0 ] || tail -n 3 "$folder/warnings.txt"
exit $changed
