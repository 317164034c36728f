"""The weights of the model that is trained, in a folder: as other programs load them, and bit by bit as they are in memory.

`policy/` is in the Hugging Face format, from which runs start, and which is evaluated, sampled and exported. What it holds under
another name than the model in memory, such as an adapter, is also in `model.safetensors`; what it holds as it is, such as all
weights of a model without an adapter, is there alone.
"""

import json
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from prefopt.policy.sharding import divided_like
from prefopt.support.errors import PrefoptError

DAMAGED = (
    *(RuntimeError, KeyError, ValueError, TypeError, IndexError, AttributeError, EOFError, OSError),
    *(SafetensorError, pickle.UnpicklingError),
)
"""What reading a file that was cut, or that is something else, may raise."""

POLICY = "policy"
WEIGHTS = "model.safetensors"

INSIDE = {"critic.safetensors": "critic."}
"""Files whose weights are not of the trained model's `model`."""


class Savable(Protocol):
    """A policy or a scorer."""

    def save(self, folder: Path) -> None: ...  # noqa: D102
    def state_dict(self) -> dict[str, Tensor]: ...  # noqa: D102
    def named_parameters(self) -> Iterator[tuple[str, Any]]: ...  # noqa: D102
    def named_buffers(self) -> Iterator[tuple[str, Tensor]]: ...  # noqa: D102


def write_weights(model: Savable, folder: Path) -> None:
    """Write the weights that are trained, tied ones once, and buffers: the base model under an adapter is on disk already.

    Args:
        model: a policy or a scorer.
        folder: where `policy/` and `model.safetensors` go.
    """
    (folder / POLICY).mkdir()
    model.save(folder / POLICY)
    held, state = _held(folder / POLICY), model.state_dict()
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    names += [name for name, _ in model.named_buffers() if name in state]
    tensors, elsewhere = {}, {}
    for name in names:
        tensor = state[name].detach().cpu()
        if name in held and _same(tensor, _read(held[name], name)):
            elsewhere[name] = held[name].name
        else:
            tensors[name] = tensor.contiguous().clone()
    save_file(tensors, folder / WEIGHTS, {POLICY: json.dumps(elsewhere)})


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All of them, by their names in memory.

    Raises:
        PrefoptError: a file is missing or damaged.
    """
    file = folder / WEIGHTS
    try:
        with safe_open(file, "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            elsewhere = json.loads((opened.metadata() or {}).get(POLICY, "{}"))
        for name, place in elsewhere.items():
            file = folder / POLICY / place
            tensors[name] = _read(file, name)
    except DAMAGED as error:
        raise damaged(file, error) from error
    return tensors


def damaged(file: Path, error: Exception) -> PrefoptError:
    """What to say of a file that cannot be read."""
    first = next(iter(str(error).splitlines()), type(error).__name__)
    return PrefoptError(f"{file} is damaged ({first})")


def fit(model: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put weights into the model that they were written of.

    Raises:
        KeyError: a trainable weight is missing, or one is unknown.
        RuntimeError: the shape of one is another.
    """
    aliases: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(parameter), []).append(name)
    trainable = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    missing = [names[0] for key, names in aliases.items() if key in trainable and not {*names} & weights.keys()]
    strange = sorted(weights.keys() - model.state_dict().keys())
    if missing or strange:
        raise KeyError(f"weights that are {'missing' if missing else 'unknown'}, such as {(missing or strange)[0]}")
    held = model.state_dict()
    divided = {name: divided_like(weight, held[name]) for name, weight in weights.items()}
    model.load_state_dict(divided, strict=False)  # frozen weights are not in it


def _held(policy: Path) -> dict[str, Path]:
    """The file of each weight in a saved model, by the name that it would have in memory."""
    files: dict[str, Path] = {}
    for file in sorted(policy.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            files |= {_inside(file) + name: file for name in opened.keys()}  # noqa: SIM118
    return files


def _read(file: Path, name: str) -> Tensor:
    with safe_open(file, "pt") as opened:
        tensor: Tensor = opened.get_tensor(name.removeprefix(_inside(file)))
        return tensor


def _inside(file: Path) -> str:
    return INSIDE.get(file.name, "model.")


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
