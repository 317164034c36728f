"""Functions that are called with every step, and may stop the run."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from accelerate import Accelerator

from prefopt import recipe
from prefopt.support.errors import PrefoptError
from prefopt.support.plugins import LATER, check_call, make, users_code
from prefopt.training.devices import on_main_process
from prefopt.training.loop import Step

Callback = Callable[[Step], str | bool | None]
"""Called with a step that is done. A text is a reason to stop, and so is True; None and False go on."""

ASKED = ("accelerator", "policy", "tokenizer", "folder")
"""What the constructor of a callback can ask for, by parameter name."""


def check_callbacks(specs: Sequence[recipe.Callback]) -> None:
    """Refuse what `make_callbacks` would, as far as that can be known without loading a model.

    Raises:
        PrefoptError: an unknown name or field, or something that cannot be called with a step.
    """
    make_callbacks(specs, dict.fromkeys(ASKED, LATER))


def make_callbacks(specs: Sequence[recipe.Callback], running: Mapping[str, Any]) -> dict[str, Callback]:
    """The recipe's callbacks, by the name that messages call them.

    Args:
        specs: the recipe's `train.callbacks`.
        running: things of the run by the names in `ASKED`, for constructors that ask for them.

    Raises:
        PrefoptError: what `check_callbacks` refuses.
    """
    callbacks: dict[str, Callback] = {}
    for number, spec in enumerate(specs):
        where = f"train.callbacks.{number}"
        callback = make(spec.name, spec.fields, "callback", where=where, running=running)
        check_call(callback, ("step",), f"{where}: {spec.name}")
        callbacks[f"{where}: {spec.name}"] = callback
    return callbacks


def reason_to_stop(callbacks: Mapping[str, Callback], step: Step, accelerator: Accelerator) -> str:
    """Call every callback with a step, on the main process; why to stop, the same on all processes, or nothing.

    Raises:
        PrefoptError: on every process: a callback raised something, or returned something else than a reason.
    """
    if not callbacks:
        return ""
    return on_main_process(accelerator, lambda: _reasons(callbacks, step))


def _reasons(callbacks: Mapping[str, Callback], step: Step) -> str:
    reasons = []
    for name, callback in callbacks.items():
        with users_code(f"{name}, at step {step.number},"):
            answer: Any = callback(step)
        if not isinstance(answer, str | bool | None):
            raise PrefoptError(
                f"{name} returned {answer!r} at step {step.number}; a callback returns a text, the reason to stop, or True, "
                "and nothing to go on"
            )
        if answer:
            reasons.append(answer if isinstance(answer, str) else name)
    return f"step {step.number}: {'; '.join(reasons)}" if reasons else ""
