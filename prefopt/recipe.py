"""Recipes: what a run is, in a YAML file that is checked before anything is loaded."""

import os
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from prefopt.errors import PrefoptError, nearest

BUILT_IN = {"pocket": str(Path(__file__).parent / "testbeds" / "pocket" / "lm")}
"""Variables that every recipe has: the folder of the pocket language model."""

FILES = {".py", ".jsonl", ".json", ".parquet", ".csv", ".txt"}
"""Endings by which a string in a recipe is known to be a file; such paths are looked up beside the recipe first."""


class Section(BaseModel):
    """A part of a recipe: frozen, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Names = typing.Annotated[tuple[str, ...], BeforeValidator(_listed)]


class Adapter(Section):
    """LoRA (arXiv 2106.09685), through peft. The reference is then the model with the adapter switched off."""

    r: int = Field(16, gt=0, description="rank")
    alpha: float = Field(32, gt=0, description="the update is scaled by alpha / r")
    targets: str | tuple[str, ...] = Field("all-linear", description="modules to adapt: names, or all-linear")


class Policy(Section):
    """The model that is trained: a causal LM, or a scorer when the objective learns rewards."""

    model: Names = Field(description="folder, run folder or hub id; of several, the first that is on disk")
    tokenizer: str | None = Field(None, description="folder or hub id, when it is not the model's own")
    adapter: Adapter | None = Field(None, description="train a LoRA adapter instead of all weights")
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = Field(
        "float32", description="dtype of the weights; train.precision decides the arithmetic"
    )
    attention: str | None = Field(None, description="attention implementation of transformers: sdpa, eager, …")
    gradient_checkpointing: bool = Field(False, description="compute activations again instead of keeping them")
    remote_code: bool = Field(False, description="allow the model's repository to run its own code")


class Reference(Section):
    """What the policy is held near to."""

    model: Names | None = Field(None, description="another model; null is the policy at step 0")
    dtype: Literal["float32", "bfloat16", "float16", "float64"] | None = Field(
        None, description="dtype of a frozen copy or another model; null is the policy's"
    )


class Data(Section):
    """Rows in one of the formats of docs/data.md."""

    data: Names = Field(description="files (JSONL, Parquet, CSV), `module:function` or `file.py:function`, or a hub id")
    arguments: dict[str, Any] = Field(default_factory=dict, description="arguments of the function")
    hub_split: str | None = Field(None, description="split of a hub dataset")
    limit: int | None = Field(None, gt=0, description="use only the first rows")


class Source(Data):
    """Where the training batches come from."""

    validation: Data | None = Field(None, description="held-out rows to watch; null takes them from `split`")
    test: Data | None = Field(None, description="held-out rows for the end; null takes them from `split`")
    split: tuple[float, float, float] = Field(
        (0.8, 0.1, 0.1), description="shares of train, validation and test; rows of one group stay together"
    )
    max_prompt_tokens: int = Field(512, gt=0, description="longer prompts lose their beginning")
    max_completion_tokens: int = Field(512, gt=0, description="longer completions lose their end")
    ties: Literal["drop", "keep"] = Field("drop", description="what to do with completions of equal score")

    @model_validator(mode="after")
    def _shares(self) -> "Source":
        if min(self.split) < 0 or abs(sum(self.split) - 1) > 1e-6:
            raise ValueError(f"split must be three shares that add up to 1, got {list(self.split)}")
        return self


class Term(BaseModel):
    """An objective and its hyperparameters; keys other than these are its fields."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field(description="of the catalogue (`prefopt objectives`), or `package.module:Class`, `file.py:Class`")
    weight: float = Field(1.0, description="its factor in the sum of several")
    source: Source | None = Field(None, description="batches of its own; null shares the run's")

    @property
    def fields(self) -> dict[str, Any]:
        """The objective's hyperparameters."""
        return dict(self.__pydantic_extra__ or {})


def _terms(value: Any) -> Any:
    value = value if isinstance(value, list | tuple) else [value]
    return [{"name": term} if isinstance(term, str) else term for term in value]


class Train(Section):
    """The loop."""

    steps: int | None = Field(None, ge=0, description="logical batches to train on; give this or epochs")
    epochs: float | None = Field(None, gt=0, description="passes over the source; give this or steps")
    batch_size: int = Field(64, gt=0, description="prompts in a logical batch, over all processes")
    minibatch_size: int | None = Field(None, gt=0, description="prompts in one optimiser step; null is batch_size")
    passes: int = Field(1, gt=0, description="times that each logical batch is gone through")
    micro_batch_size: int = Field(16, gt=0, description="prompts in one forward pass of a process; memory only")
    lr: float = Field(1e-6, ge=0, description="peak learning rate")
    schedule: Literal["constant", "linear", "cosine"] = Field("linear", description="decay after the warm-up, to 0")
    warmup: float = Field(0.1, ge=0, description="steps of linear warm-up; below 1, a share of all steps")
    optimizer: Literal["adamw", "rmsprop", "sgd"] = Field("adamw", description="of torch.optim")
    betas: tuple[float, float] = Field((0.9, 0.999), description="of adamw")
    eps: float = Field(1e-8, gt=0, description="of adamw and rmsprop")
    weight_decay: float = Field(0.0, ge=0, description="decoupled in adamw")
    clip_norm: float | None = Field(1.0, gt=0, description="largest norm of the gradient; null does not clip")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="arithmetic; auto is bf16 on devices that have it"
    )
    threads: int | None = Field(None, gt=0, description="CPU threads; null leaves torch's choice")
    checkpoint_every: int | None = Field(None, gt=0, description="steps between checkpoints; null writes none")
    keep_checkpoints: int = Field(1, gt=0, description="older ones are deleted once a newer one is complete")

    @model_validator(mode="after")
    def _consistent(self) -> "Train":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of train.steps and train.epochs")
        if self.minibatch_size is not None and self.batch_size % self.minibatch_size:
            raise ValueError(f"minibatch_size {self.minibatch_size} does not divide batch_size {self.batch_size}")
        return self


class Sampling(Section):
    """How completions are drawn."""

    temperature: float = Field(1.0, ge=0, description="0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus")
    top_k: int = Field(0, ge=0, description="0 is off")
    max_tokens: int = Field(64, gt=0, description="longest completion")


class Evaluate(Section):
    """What is measured on held-out data; at the start, at the end, and in between."""

    every: int | None = Field(
        None, gt=0, description="steps between evaluations on validation rows; null is start and end"
    )
    rows: int = Field(512, gt=0, description="held-out rows, at most")
    prompts: int = Field(128, ge=0, description="held-out prompts to sample from, at most; 0 samples nothing")
    completions: int = Field(1, gt=0, description="samples of each prompt")
    sampling: Sampling = Field(Sampling(), description="how they are drawn")
    gold: str | None = Field(None, description="`module:function` that scores samples: the reward that counts")
    batch_size: int = Field(32, gt=0, description="prompts in one forward pass")
    confidence: float = Field(0.95, gt=0, lt=1, description="of the intervals")


class Wandb(Section):
    """Weights & Biases; offline unless a login is present."""

    project: str = Field("prefopt", description="project")
    entity: str | None = Field(None, description="user or team")
    group: str | None = Field(None, description="runs that belong together")
    tags: tuple[str, ...] = Field((), description="labels")
    mode: Literal["auto", "online", "offline"] = Field("auto", description="auto is online where a login is present")


class Track(Section):
    """Where numbers go; metrics.jsonl is always written."""

    every: int = Field(1, gt=0, description="steps between lines of metrics")
    wandb: Wandb | None = Field(None, description="also log to W&B")
    folder: str = Field("runs", description="where run folders are made")


class Seeds(Section):
    """One seed for each source of chance; null derives it from `seed`."""

    data: int | None = Field(None, description="the split")
    init: int | None = Field(None, description="weights that start at random: adapters and heads")
    order: int | None = Field(None, description="the order of the batches")
    sampling: int | None = Field(None, description="completions drawn during training")
    evaluation: int | None = Field(None, description="completions drawn to evaluate, and resampling")


class Recipe(Section):
    """A run."""

    name: str = Field(description="names the run folder; by default the file's folder and name")
    seed: int = Field(0, ge=0, description="every seed that `seeds` does not give")
    seeds: Seeds = Field(Seeds(), description="one seed for each source of chance")
    variables: dict[str, str] = Field(
        default_factory=dict, description="used elsewhere as ${name}; ${env:NAME} reads the environment"
    )
    policy: Policy = Field(description="the model that is trained")
    reference: Reference = Field(Reference(), description="what it is held near to")
    source: Source = Field(description="where the batches come from")
    objective: typing.Annotated[tuple[Term, ...], BeforeValidator(_terms)] = Field(
        min_length=1, description="one objective, or a list of terms: {name: DPO, beta: 0.1}"
    )
    train: Train = Field(description="the loop")
    evaluate: Evaluate = Field(Evaluate(), description="what is measured")
    track: Track = Field(Track(), description="where numbers go")

    def seed_of(self, what: str) -> int:
        """The seed of one source of chance, by its name in `Seeds`."""
        given = getattr(self.seeds, what)
        return self.seed if given is None else given

    def to_yaml(self) -> str:
        """The recipe in full, as it can be loaded again."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, what it inherits, and the overrides.

    Args:
        path: a YAML file. Its `base:` names another, relative to it, whose keys it refines; `objective` is replaced whole.
        overrides: `dotted.key=value`, the value in YAML.

    Raises:
        PrefoptError: no such file, no YAML, an unknown key (with the nearest known one), a value that cannot be.
    """
    file = Path(path).expanduser()
    tree = _read(file, seen=())
    tree.setdefault("name", f"{file.parent.name}-{file.stem}" if file.parent.name else file.stem)
    for override in overrides:
        _set(tree, override)
    try:
        return Recipe.model_validate(_interpolate(tree))
    except ValidationError as error:
        raise PrefoptError(explain(error, str(file))) from None


def explain(error: ValidationError, where: str) -> str:
    """A pydantic error, a line for each key that is wrong: where, what, and what to write instead."""
    known = {field.key for field in describe(Recipe)}
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"] if not isinstance(part, int))
        if item["type"] == "extra_forbidden":
            parent = key.rpartition(".")[0]
            siblings = [k for k in known if k.rpartition(".")[0] == parent]
            lines.append(f"unknown key `{key}`.{nearest(key, siblings) or nearest(key, known)}")
        elif item["type"] == "missing":
            lines.append(f"`{key}` is missing: {next((f.description for f in describe(Recipe) if f.key == key), '')}")
        else:
            message = item["msg"].removeprefix("Value error, ")
            lines.append(f"`{key}`: {message}" + (f", got {item['input']!r}" if item["type"] != "value_error" else ""))
    return f"{where}: " + ("\n  ".join(["", *lines]) if len(lines) > 1 else lines[0])


class Described(NamedTuple):
    """One field of a recipe, for help and docs."""

    key: str
    default: str
    description: str


def describe(section: type[BaseModel], prefix: str = "") -> Iterator[Described]:
    """Every field of a recipe, nested sections after their own line."""
    for name, info in section.model_fields.items():
        default = "required" if info.is_required() else _show(info.get_default(call_default_factory=True))
        yield Described(prefix + name, default, info.description or "")
        for nested in _sections_in(info.annotation):
            if not (nested is Source and prefix):  # a term's source is like the run's
                yield from describe(nested, f"{prefix}{name}.")


def _show(default: Any) -> str:
    if isinstance(default, BaseModel):
        return ""
    return (
        yaml.safe_dump(list(default) if isinstance(default, tuple) else default, default_flow_style=True)
        .removesuffix("...\n")
        .strip()
    )


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in typing.get_args(annotation) for section in _sections_in(part)]


def _read(file: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if not file.is_file():
        raise PrefoptError(f"no recipe {file}" + (f" (the base of {seen[-1]})" if seen else ""))
    if file.resolve() in seen:
        raise PrefoptError(f"{file} inherits from itself")
    tree = _parse(file.read_text(), str(file)) or {}
    if not isinstance(tree, dict):
        raise PrefoptError(f"{file} must hold keys and values, got a {type(tree).__name__}")
    base = tree.pop("base", None)
    tree = _absolute(tree, file.parent)
    return tree if base is None else _merge(_read(file.parent / base, (*seen, file.resolve())), tree)


def _absolute(value: Any, folder: Path) -> Any:
    """File names that are found beside the recipe, made absolute, so that the resolved recipe works from anywhere."""
    if isinstance(value, Mapping):
        return {key: _absolute(item, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [_absolute(item, folder) for item in value]
    if isinstance(value, str):
        name, colon, rest = value.partition(":")
        if Path(name).suffix in FILES and (folder / name).is_file():
            return f"{(folder / name).resolve()}{colon}{rest}"
    return value


def _merge(base: Mapping[str, Any], child: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in child.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both and key != "objective" else value
    return merged


def _set(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise PrefoptError(f"{override!r} is no override; write key=value, for example train.lr=1e-6")
    *path, last = key.split(".")
    node: Any = tree
    for part in path:
        node = node[int(part)] if isinstance(node, list) and part.isdigit() else node.setdefault(part, {})
        if isinstance(node, str) and path == ["objective"]:  # `objective: DPO` overridden by objective.beta=…
            tree["objective"] = node = {"name": node}
        if not isinstance(node, dict | list):
            raise PrefoptError(f"{override!r}: `{part}` is {node!r}, which has no keys")
    if isinstance(node, list):
        raise PrefoptError(f"{override!r}: `{'.'.join(path)}` is a list; give the number of its item before `{last}`")
    node[last] = _parse(text, repr(override))


class _Loader(yaml.SafeLoader):
    """YAML, except that 1e-6 is a number, as everyone who types it means."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise PrefoptError(f"{where} is not YAML: {error}") from None


def _interpolate(tree: dict[str, Any]) -> dict[str, Any]:
    variables = {**BUILT_IN, **{k: str(v) for k, v in (tree.get("variables") or {}).items()}}

    def value_of(match: re.Match[str]) -> str:
        name = match[1]
        if name.startswith("env:"):
            return os.environ.get(name[4:], "")
        if name not in variables:
            raise PrefoptError(f"unknown variable ${{{name}}}.{nearest(name, variables)} Known: {', '.join(variables)}")
        return os.path.expanduser(re.sub(r"\$\{([^}]*)\}", value_of, variables[name]))

    def walk(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: item if key == "variables" else walk(item) for key, item in value.items()}
        if isinstance(value, list):
            return [walk(item) for item in value]
        return re.sub(r"\$\{([^}]*)\}", value_of, value) if isinstance(value, str) else value

    return walk(tree)
