#!/usr/bin/env bash
# Seen in argilla 2.8.0.
#
# Argilla's server keeps a ranking as options with a rank each, in the order in which the question lists them. When the SDK reads a response,
# it keeps the options and drops the ranks: a list in the order of storage, which says nothing of who is first. An annotator who put
# "second" first and one who put "first" first read the same; ties are gone, too. `Response.value` holds the list, and so does what
# `records.to_dict`, `to_json` and `to_datasets` export. Nothing is raised or logged.
#
# Why it matters here: an export looks like rows of preferences, best first, and trains on the order of the question's options. prefopt
# refuses rankings in such an export and says so; what the server's own records endpoint returns has the ranks, and is read.
#
# The script makes the SDK's objects of what a server answers; no server is needed for that.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check argilla==2.8.0 requests==2.34.2 pydantic==2.14.4 httpx==0.28.1 datasets==5.2.0
changed=0
HF_HOME="$folder/cache" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON' || changed=1
from types import SimpleNamespace
from uuid import uuid4

import argilla as rg
from argilla._models import UserResponseModel
from argilla.responses import UserResponse

# A client is needed to make a question, and is never asked anything.
client = SimpleNamespace(api=SimpleNamespace(questions=None))
question = rg.RankingQuestion(name="order", values=["first", "second", "third"], client=client)
record = SimpleNamespace(dataset=SimpleNamespace(settings=SimpleNamespace(questions={"order": question})))


def read(**ranks: int) -> list[str]:
    """What the SDK makes of a response in which each option has this rank."""
    stored = [{"value": option, "rank": rank} for option, rank in ranks.items()]
    model = UserResponseModel(values={"order": {"value": stored}}, status="submitted", user_id=uuid4())
    return UserResponse.from_model(model, record).responses[0].value


liked = read(first=1, second=2, third=3)
disliked = read(first=3, second=2, third=1)
tied = read(first=1, second=1, third=1)
print("first is best ", liked)
print("first is worst", disliked)
print("all are equal ", tied)
assert liked == disliked == tied == ["first", "second", "third"], "this is not what was seen"
PYTHON
exit $changed
