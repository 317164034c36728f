"""What is counted of the texts that feedback did not read as they were written."""

import torch

from prefopt import Verdict
from prefopt.feedback import Clip, Ensemble, Panel, Transformed
from prefopt.sources.scoring import misread


def reader(*notes):
    return lambda prompts, *_: Verdict(torch.arange(len(prompts) * 2.0).view(-1, 2), notes=list(notes))


def test_what_feedback_did_not_read_is_counted_however_deep_it_stands():
    one, other = reader({"cut": 2, "empty": 1}, {}), Transformed(reader({}, {"cut": 1, "control": 3}), (Clip(low=0),))
    asked = (["p", "q"], [["a", "b"]] * 2, [{}] * 2)
    alone, ensemble, panel = one(*asked), Ensemble((one, other))(*asked), Panel((one, Ensemble((one, other))))(*asked)
    assert misread([alone]) == {"cut": 2}
    assert misread([ensemble]) == {"cut": 3, "control": 3}
    assert misread([panel, alone]) == {"cut": 2 + 3 + 2, "control": 3}
    assert misread([]) == {}


def test_notes_of_a_users_own_are_no_counts():
    notes = [{"cut": "by hand", "control": True, "members": 3}, "a sentence", {"members": ["text", {"cut": 1}]}]
    assert misread([Verdict(torch.zeros(3, 1), notes=notes)]) == {"cut": 1}
