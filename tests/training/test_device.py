"""Training on a device that is not the host: where every tensor is, and what the host waits for."""

import collections
from contextlib import nullcontext

import pytest
import torch
import updates
from _device import ELSEWHERE, Elsewhere, Held
from accelerate import Accelerator
from test_train import relative
from updates import make_policy, seven_rows, train, weights

from prefopt.training.loop import Trainer


@pytest.fixture
def elsewhere(monkeypatch):
    """Models are on the device, and after each step what the host waited for in it is noted."""
    waited: list[collections.Counter[str]] = []

    class Noting(Trainer):
        def __iter__(self):
            for step in super().__iter__():
                waited.append(collections.Counter(device.waited))
                device.waited.clear()
                yield step

    def moved(case, dtype):
        return make_policy(case, dtype).to(ELSEWHERE)

    asked, autocast = torch.is_autocast_enabled, torch.autocast  # which know nothing of this device
    monkeypatch.setattr(torch, "autocast", lambda kind, **k: nullcontext() if kind == "meta" else autocast(kind, **k))
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind=None: False if kind == "meta" else asked(kind))
    monkeypatch.setattr("prefopt.policy.rows.verified.LONGEST", {})
    monkeypatch.setattr("prefopt.policy.rows.verified._file", lambda kind: None)
    monkeypatch.setattr(torch.__future__, "_swap_module_params_on_conversion", True)
    monkeypatch.setattr(Accelerator, "device", ELSEWHERE)
    monkeypatch.setattr(updates, "Trainer", Noting)
    monkeypatch.setattr(updates, "make_policy", moved)
    with Elsewhere() as device:
        yield waited


OF_ROLLOUTS = {"grpo": 5, "ppo": 12}
"""For their own metrics objectives of rollouts wait so often, however many updates and micro-batches a batch makes."""


@pytest.mark.parametrize(
    ("case", "micro"),
    [("dpo", 3), ("dpo+sft", 7), ("coupled", 3), ("ppo", 3), ("grpo", 2)],
)
def test_the_host_waits_for_the_numbers_of_an_update_alone(case, micro, request):
    """Once for each update, and at first where layouts are compared; updates are those of a model on the host."""
    expected = weights(train(case, torch.float64, micro, seven_rows(case))[0].model)
    waited = request.getfixturevalue("elsewhere")
    trainer, _ = train(case, torch.float64, micro, seven_rows(case))
    found = weights(trainer.model)
    assert isinstance(found, Held)
    assert relative(expected, found.inner) < 1e-6  # rows are laid out otherwise, and norms are float32
    assert waited[0].total() > 1
    for step in waited[1:]:
        assert step["tolist"] == trainer.settings.passes
        assert step.total() - step["tolist"] == OF_ROLLOUTS.get(case, 0), step
