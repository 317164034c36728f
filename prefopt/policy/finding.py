"""Finding the models that a recipe names: folders, run folders, hub ids, and adapters on any of these. Loads no weights."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from huggingface_hub import model_info, snapshot_download, try_to_load_from_cache
from peft import PeftConfig
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.utils.peft_utils import find_adapter_config_file

from prefopt.support.downloads import HOW_TO_GET_A_MODEL, HUB_ID, is_awaited, no_model, note_model
from prefopt.support.errors import PrefoptError
from prefopt.support.given import Given, refuse_text_of_object
from prefopt.support.out_of_memory import LOADING, advising

T = TypeVar("T")

OLDER_CHECKPOINT = (
    "this checkpoint has no policy/, in which later versions keep its model as other programs load it: go on with its run "
    "(prefopt run FOLDER --resume), whose next checkpoint has one"
)

CONFIGS = ("config.json", "adapter_config.json")
"""One of these is in every folder of a model or an adapter."""

WEIGHTS = {".safetensors", ".bin"}
"""Endings of files of weights."""


def find_model(names: Sequence[str]) -> str:
    """The first of these models that is available: a folder, the `policy/` of a run or a checkpoint, or a hub id. Loads nothing.

    Raises:
        PrefoptError: none is on disk, and the hub has none or cannot be reached; says how to get one.
    """
    for name in names:
        refuse_text_of_object(name)
        if isinstance(name, Given):
            if not isinstance(name.object, PreTrainedModel):
                raise PrefoptError(f"{name} is no model of transformers: {HOW_TO_GET_A_MODEL}")
            return name
        folder = Path(name).expanduser()
        for place in (folder / "policy", folder):
            if any((place / file).is_file() for file in CONFIGS):
                return str(place.absolute())  # absolute, because an adapter stores it as the name of its base
        if "@" in name and HUB_ID.fullmatch(name.partition("@")[0]) and not folder.exists():
            return pinned(name)
    hub = [n for n in names if HUB_ID.fullmatch(n) and not Path(n).expanduser().exists()]
    if hub:
        cached = next((name for name in hub if any(_cached(name, file) for file in CONFIGS)), None)
        return cached or (hub[0] if note_model(hub[0]) else _on_hub(hub[0]))
    if of_a_run := _of_a_run(names):
        raise PrefoptError(f"no model at {' or '.join(names)}: {of_a_run}")
    raise no_model(names)


def _of_a_run(names: Sequence[str]) -> str:
    """What to do about the folder of a run that has no trained policy yet, or about one of its checkpoints; else nothing."""
    for folder in map(Path, names):
        if (folder / "optimizer.pt").is_file():
            return OLDER_CHECKPOINT
        if saved := sorted(folder.glob("checkpoints/step-*/policy")):
            newest = saved[-1].parent
            return f"the run is not finished. Name its newest checkpoint, {newest}, or finish it: prefopt run {folder} --resume"
    return ""


def pinned(name: str) -> str:
    """The folder in the hub's cache of a model at a revision, `owner/name@revision`; it is downloaded if it is not there.

    Any other name is returned as it is, and so is one that is only noted (`noting_downloads`).

    Args:
        name: with a branch, a tag or a commit after the @.

    Raises:
        PrefoptError: the hub has no such revision, or cannot be reached.
    """
    model, at, revision = name.partition("@")
    if not (at and HUB_ID.fullmatch(model)):
        return name
    snapshot = _snapshot(model, revision)
    if snapshot is not None and any(file.suffix in WEIGHTS for file in snapshot.iterdir()):
        return str(snapshot)
    return name if note_model(name) else _downloaded(model, revision)


def commit_of(name: str) -> str | None:
    """The commit of a model that is in the hub's cache, by its hub id or its folder there; None for any other."""
    if isinstance(name, Given):
        return None
    folder = Path(name) if Path(name).is_dir() else _snapshot(name, None)
    in_cache = folder is not None and folder.parent.name == "snapshots"
    return folder.name if folder is not None and in_cache else None


def _snapshot(model: str, revision: str | None) -> Path | None:
    """The folder of a revision in the hub's cache, where it has a model's configuration; None is what `main` stands for."""
    if not HUB_ID.fullmatch(model):
        return None
    files = (try_to_load_from_cache(model, file, revision=revision) for file in CONFIGS)
    return next((Path(file).parent for file in files if isinstance(file, str)), None)


@lru_cache
def _downloaded(model: str, revision: str) -> str:
    """The folder of a revision, downloaded if need be; formats that transformers does not read are left out."""
    try:
        return snapshot_download(
            model, revision=revision, ignore_patterns=["*.gguf", "*.onnx", "*.h5", "*.msgpack", "*.ot"]
        )
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), "")
        raise PrefoptError(
            f"no model {model} at revision {revision!r}: it is not in the hub's cache, and asking the hub failed "
            f"({type(error).__name__}: {first}); {HOW_TO_GET_A_MODEL}"
        ) from error


def adapter_config(name: str) -> PeftConfig | None:
    """The configuration of an adapter; None for a model with weights of its own, or one that is not there yet.

    Args:
        name: as `find_model` returns it.

    Raises:
        PrefoptError: it is damaged, or names no base.
    """
    if isinstance(name, Given) or is_awaited(name):
        return None
    if not Path(name).is_dir() and _cached(name, "config.json") and not _cached(name, "adapter_config.json"):
        return None  # known without asking the hub again
    if not find_adapter_config_file(name):
        return None
    config: PeftConfig = loaded(name, "adapter", lambda: PeftConfig.from_pretrained(name))
    if not config.base_model_name_or_path:
        raise PrefoptError(
            f"the adapter {name} does not say which model it belongs to: write that model's folder or hub id into "
            "base_model_name_or_path of its adapter_config.json"
        )
    return config


def base_of(name: str, config: PeftConfig) -> str:
    """The model below an adapter, as `find_model` returns it.

    Args:
        name: of the adapter.
        config: its own.

    Raises:
        PrefoptError: it is not available.
    """
    base = str(config.base_model_name_or_path)
    try:
        return find_model([base])
    except PrefoptError as error:
        raise PrefoptError(f"{name} is an adapter of {base}: {error}") from error


def model_config(name: str, remote_code: bool = False) -> PretrainedConfig:
    """The configuration of a model, or of the one below an adapter.

    Raises:
        PrefoptError: it cannot be read.
    """
    adapter = adapter_config(name)
    if adapter is not None:
        return model_config(base_of(name, adapter), remote_code)
    if isinstance(name, Given):
        config: PretrainedConfig = name.object.config
        return config
    return loaded(name, "model", lambda: _config(name, remote_code))


def _config(name: str, remote_code: bool) -> PretrainedConfig:
    config: PretrainedConfig = AutoConfig.from_pretrained(name, trust_remote_code=remote_code)
    if not all(isinstance(architecture, str) for architecture in config.architectures or ()):
        raise ValueError(f"config.json: architectures is {config.architectures}, and must be a list of names")
    for size in ("num_hidden_layers", "num_attention_heads", "hidden_size", "vocab_size"):
        number = getattr(config.get_text_config(), size, None)
        if (
            isinstance(number, int) and number < 1
        ):  # transformers makes a model without layers, which fails when it writes
            raise ValueError(f"config.json: {size} is {number}")
    return config


def quantisation(config: PretrainedConfig) -> str | None:
    """The method by which a model's weights are quantised; None where they are not."""
    quantised = getattr(config, "quantization_config", None)
    if not quantised:
        return None
    method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised.quant_method
    return str(getattr(method, "value", method))


def loaded(name: str, what: str, load: Callable[[], T]) -> T:
    """What `load` returns; whatever it raises becomes an error for people.

    Raises:
        PrefoptError: it raised something.
    """
    try:
        with advising(f"loading the {what} {name}", LOADING):
            return load()
    except PrefoptError:
        raise
    except Exception as error:  # a damaged folder can raise almost anything
        first = next(iter(str(error).strip().splitlines()), "")
        if "trust_remote_code" in str(error):
            first += " (policy.remote_code: true allows it)"
        raise PrefoptError(
            f"cannot load the {what} {name}: {type(error).__name__}: {first}\n  {HOW_TO_GET_A_MODEL}"
        ) from error


@lru_cache
def _on_hub(name: str) -> str:
    """Ask the hub once, with a short timeout, before anything is loaded: transformers itself would retry for a minute."""
    try:
        model_info(name, timeout=10)
    except Exception as error:  # missing, forbidden or unreachable are exceptions of many classes
        first = next(iter(str(error).strip().splitlines()), "")
        raise PrefoptError(
            f"no model at {name}: it is not on disk, and asking the hub failed ({type(error).__name__}: {first}); "
            f"{HOW_TO_GET_A_MODEL}"
        ) from error
    return name


def _cached(name: str, file: str) -> bool:
    return isinstance(try_to_load_from_cache(name, file), str)
