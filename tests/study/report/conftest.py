"""A study of known numbers, with its comparison and report."""

from pathlib import Path

import pytest
from _folders import finished_run, study

from prefopt.study.comparison.compare import compare
from prefopt.study.comparison.comparison import Comparison
from prefopt.study.report import write_report

ARMS = {"dpo": [0.0, 0.1, 0.2, 0.1], "rpo": [1.0, 1.12, 1.21, 1.09], "odd & <i>": [0.3, -0.2, 0.4, None]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = study(tmp_path_factory.mktemp("study"), ARMS)
    finished_run(made / "arms" / "online" / "seed-0", 0, 0.2, recipe={"train": {"batch_size": 8, "lr": 0.001}})
    return made


@pytest.fixture(scope="module")
def found(folder) -> Comparison:
    return compare([folder], baseline="dpo", question="Is <rpo> better?", confounds=["online: train.batch_size is 8"])


@pytest.fixture(scope="module")
def written(found, tmp_path_factory) -> Path:
    return write_report(found, tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def html(written) -> str:
    return written.read_text()
