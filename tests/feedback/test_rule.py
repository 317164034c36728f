import pytest

from prefopt import PrefoptError
from prefopt.feedback import Rule

GIVEN = ["a", "b"], [["x", "yy", "z"], ["u", "v", "www"]], [{"id": 1}, {"id": 2}]


def test_a_rule_is_named_by_path(tmp_path):
    (tmp_path / "rules.py").write_text(
        "def length(prompts, completions, rows):\n    return [[len(c) for c in r] for r in completions]\n\n\nLIMIT = 3\n"
    )
    rule = Rule("rules.py:length", tmp_path)
    rule.check()
    assert rule(*GIVEN).scores.tolist() == [[1, 2, 1], [1, 1, 3]]
    with pytest.raises(PrefoptError, match="length"):
        Rule("rules.py:lenght", tmp_path)(*GIVEN)
    with pytest.raises(PrefoptError, match=r"no file nowhere\.py"):
        Rule("nowhere.py:length", tmp_path).check()
    with pytest.raises(PrefoptError, match=r"rules\.py:LIMIT is no function"):
        Rule("rules.py:LIMIT", tmp_path).load()
