"""Recipes: what a run is, in a YAML file that is checked before anything is loaded."""

import copy
import glob
import os
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from prefopt.support.errors import PrefoptError, nearest

BUILT_IN = {"pocket": str(Path(__file__).parent / "testbeds" / "pocket" / "lm")}
"""Variables that every recipe has: the folder of the pocket language model."""

FILES = {".py", ".jsonl", ".json", ".parquet", ".csv", ".txt", ".yaml", ".yml"}
"""Endings by which a string in a recipe is known to be a file. Such a string, or one that begins with ./ or ../, is looked for
beside the recipe first."""

WHOLE = {"objective", "feedback", "cost", "judge", "evaluate.gold", "evaluate.judge"}
"""Keys that a recipe takes from its base or replaces whole: the fields of one class mean nothing to another."""


class Section(BaseModel):
    """A part of a recipe, or a whole one: frozen, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def to_yaml(self) -> str:
        """It in full, as it can be loaded again."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Names = typing.Annotated[tuple[str, ...], BeforeValidator(_listed)]


class Adapter(Section):
    """LoRA (arXiv 2106.09685), through peft. The reference is then the model with the adapter switched off."""

    r: int = Field(16, gt=0, description="rank of the update")
    alpha: float = Field(32, gt=0, description="the update is scaled by alpha / r")
    targets: str | tuple[str, ...] = Field("all-linear", description="modules to adapt: names, or all-linear")


class Critic(Section):
    """What tells values, for objectives that need them (PPO)."""

    model: Names | None = Field(
        None,
        description="folder, run folder (a reward model's, often) or hub id; null is a head on the policy's states",
    )


class Policy(Section):
    """The model that is trained: a causal LM, or a scorer when the objective learns rewards."""

    model: Names = Field(description="folder, run folder or hub id; of several, the first that is on disk")
    tokenizer: str | None = Field(None, description="folder or hub id; null is the model's own")
    adapter: Adapter | None = Field(None, description="train a LoRA adapter; null trains all weights")
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = Field(
        "float32", description="dtype of the weights; train.precision decides the arithmetic"
    )
    attention: str | None = Field(
        None, description="how transformers computes attention: sdpa, eager, …; null leaves it the choice"
    )
    gradient_checkpointing: bool = Field(False, description="compute activations again instead of keeping them")
    remote_code: bool = Field(False, description="allow the model's repository to run its own code")
    critic: Critic = Field(Critic(), description="what tells values, where the objective needs them")


class Reference(Section):
    """What the policy is held near to."""

    model: Names | None = Field(None, description="folder, run folder or hub id; null is the policy at step 0")
    dtype: Literal["float32", "bfloat16", "float16", "float64"] | None = Field(
        None, description="dtype of a frozen copy or another model; null is the policy's"
    )
    every: int | None = Field(
        None, gt=0, description="steps between its moves towards the policy (TR-DPO); null never moves"
    )
    mix: float = Field(
        0.6, gt=0, le=1, description="share of the policy in what a move makes of it; 1 copies the policy"
    )
    cache: bool = Field(
        True, description="keep what one that does not move says of recorded data, on disk, for further runs"
    )

    @model_validator(mode="after")
    def _one_start(self) -> "Reference":
        if self.model is not None and self.every is not None:
            raise ValueError("a reference that moves (reference.every) starts as the policy: leave out reference.model")
        return self


class Data(Section):
    """Rows in one of the formats of docs/data.md."""

    data: Names = Field(description="files (JSONL, Parquet, CSV), `module:function` or `file.py:function`, or a hub id")
    arguments: dict[str, Any] = Field(default_factory=dict, description="arguments of the function")
    adapt: str | None = Field(
        None,
        description="function, `file.py:function`, that makes a row of a known format of each row, or None to leave it out",
    )
    hub_split: str | None = Field(None, description="split of a hub data set, or the value of a column `split`")
    limit: int | None = Field(None, gt=0, description="use only the first so many rows; null uses all")


class Embeddings(Section):
    """What says how alike two prompts are, for objectives that compare across prompts (RPO); computed once, and kept on disk."""

    model: Names | None = Field(
        None, description="sentence encoder: folder or hub id; null is the policy at step 0, by its last hidden states"
    )
    max_tokens: int = Field(
        256, gt=0, description="an encoder reads so much of a prompt; the policy all that it is given"
    )
    batch_size: int = Field(64, gt=0, description="prompts in one forward pass; memory only")


class Sampling(Section):
    """How completions are drawn."""

    temperature: float = Field(1.0, ge=0, description="divides the logits; 0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1, description="smallest set of tokens with this much probability; 1 is all")
    top_k: int = Field(0, ge=0, description="only so many of the likeliest tokens; 0 is all")
    max_tokens: int = Field(64, gt=0, description="tokens of the longest completion")
    stop: Names = Field((), description="texts that end a completion, beside EOS; each must be a single token")


class Samples(Section):
    """Completions that a policy writes, and what draws them."""

    completions: int = Field(4, gt=0, description="samples of each prompt")
    sampling: Sampling = Field(Sampling(), description="how they are drawn")
    sampler: str = Field("transformers", description="what draws: transformers, vllm, or `file.py:Class`")
    server: str | None = Field(None, description="address of a vLLM server (docs/recipes.md says how to start one)")
    rows: int = Field(128, gt=0, description="completions drawn at a time; memory only")


class Rollouts(Samples):
    """The policy writes the completions of the batches itself; the data bring prompts, `feedback` brings scores."""

    order: Literal["shuffled", "length", "reward", "self-paced"] = Field(
        "shuffled",
        description="of the prompts: easiest first by length or by their present reward, or ever harder ones",
    )
    refill: bool = Field(
        False, description="replace prompts that cannot be used or whose completions all have one score (DAPO)"
    )
    mixture: float = Field(0.5, ge=0, le=1, description="the reference's share in what the player `mixture` writes")


PLAYERS = {
    "recorded": ("mismatched",),
    "rollouts": ("mismatched", "reference", "mixture", "greedy", "dataset"),
}


class Source(Data):
    """Where the training batches come from."""

    validation: Data | None = Field(None, description="held-out rows to watch in between; null takes them from `split`")
    test: Data | None = Field(None, description="held-out rows for the end; null takes them from `split`")
    split: tuple[float, float, float] = Field(
        (0.8, 0.1, 0.1), description="shares of train, validation and test; rows of one group stay together"
    )
    max_prompt_tokens: int = Field(512, gt=0, description="longer prompts lose their beginning")
    max_completion_tokens: int = Field(512, gt=0, description="longer completions lose their end")
    rollouts: Rollouts | None = Field(
        None, description="let the policy write the completions; {} does, with these defaults"
    )
    players: Names = Field(
        (),
        description="who writes further completions: mismatched (another prompt's, for KTO); with rollouts also reference, "
        "mixture, greedy, dataset",
    )
    embeddings: Embeddings | None = Field(
        None, description="embed the prompts, for an objective that needs it; {} does, by the policy itself"
    )
    ties: Literal["drop", "keep"] = Field(
        "drop", description="what to do with completions of equal score where an order is needed"
    )

    @model_validator(mode="after")
    def _known_players(self) -> "Source":
        kind = "recorded" if self.rollouts is None else "rollouts"
        if unknown := [player for player in self.players if player not in PLAYERS[kind]]:
            known = ", ".join(PLAYERS[kind])
            raise ValueError(f"players: unknown player {unknown[0]!r}; {kind} data can have {known}")
        return self

    @model_validator(mode="after")
    def _shares(self) -> "Source":
        if min(self.split) < 0 or abs(sum(self.split) - 1) > 1e-6:
            raise ValueError(f"split must be three shares that add up to 1, got {list(self.split)}")
        return self


def _terms(value: Any) -> Any:
    """A list of named sections, of which each may be just its name, and one may stand alone."""
    value = value if isinstance(value, list | tuple) else [value]
    return [_term(term) for term in value]


def _term(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class Shape(BaseModel):
    """Something done to scores; keys other than its name are its fields."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field(
        description="LengthPenalty, RepetitionPenalty, Clip, Normalise, ReferenceNormalise, MissingEOS, or your own by path"
    )

    @property
    def fields(self) -> dict[str, Any]:
        """The shape's numbers."""
        return dict(self.__pydantic_extra__ or {})


class Feedback(BaseModel):
    """What scores completions; keys other than these are its fields."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field(
        description="RewardModel, Ensemble, or your own function or class: `package.module:name`, `file.py:name`"
    )
    timeout: float | None = Field(None, gt=0, description="seconds that a call may take; null is any time")
    shape: typing.Annotated[tuple[Shape, ...], BeforeValidator(_terms)] = Field(
        (), description="what is done to its scores, in this order: [{name: Clip, low: -5, high: 5}, …]"
    )
    members: typing.Annotated[tuple["Feedback", ...], BeforeValidator(_terms)] = Field(
        (), description="of an Ensemble: feedbacks, each a name or a section like this one"
    )

    @property
    def fields(self) -> dict[str, Any]:
        """The feedback's settings."""
        return dict(self.__pydantic_extra__ or {})


Opinion = typing.Annotated[Feedback, BeforeValidator(_term)]
"""A feedback, which may be given by its name alone."""


class Term(BaseModel):
    """An objective and its hyperparameters; keys other than these are its fields."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field(description="of the catalogue (`prefopt objectives`), or `package.module:Class`, `file.py:Class`")
    weight: float = Field(1.0, description="its factor in the sum of several terms")
    source: Source | None = Field(None, description="batches of its own; null shares the run's")

    @property
    def fields(self) -> dict[str, Any]:
        """The objective's hyperparameters."""
        return dict(self.__pydantic_extra__ or {})


class Train(Section):
    """The loop."""

    steps: int | None = Field(None, ge=0, description="logical batches to train on; give this or epochs")
    epochs: float | None = Field(None, gt=0, description="passes over the source; give this or steps")
    batch_size: int = Field(64, gt=0, description="prompts in a logical batch, over all processes")
    minibatch_size: int | None = Field(None, gt=0, description="prompts in one optimiser step; null is batch_size")
    passes: int = Field(1, gt=0, description="times that each logical batch is gone through")
    micro_batch_size: int = Field(
        16, gt=0, description="prompts in one forward pass of a process, at most; memory only"
    )
    micro_tokens: int | None = Field(
        None,
        gt=0,
        description="tokens in one forward pass, at most, each prompt counted once and with padding; memory only; null is any",
    )
    lr: float = Field(1e-6, ge=0, description="peak learning rate")
    critic_lr: float | None = Field(None, gt=0, description="peak learning rate of a critic's weights; null is lr")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "linear", description="how lr falls to 0 after the warm-up"
    )
    warmup: float = Field(0.1, ge=0, description="optimiser steps of linear warm-up; below 1, a share of all")
    optimizer: Literal["adamw", "rmsprop", "sgd"] = Field("adamw", description="the optimiser")
    betas: tuple[float, float] = Field((0.9, 0.999), description="decay of adamw's averages")
    eps: float = Field(1e-8, gt=0, description="keeps adamw and rmsprop from dividing by 0")
    weight_decay: float = Field(0.0, ge=0, description="shrinks the weights; decoupled in adamw")
    clip_norm: float | None = Field(1.0, gt=0, description="largest norm of the gradient; null does not clip")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="arithmetic; auto is bf16 on devices that have it"
    )
    threads: int | None = Field(None, gt=0, description="CPU threads; null leaves torch's choice")
    limits: dict[str, tuple[float | None, float | None]] = Field(
        default_factory=dict,
        description="bounds of metrics: `{rollouts/kl: [null, 20], rollouts/entropy: [0.1, null]}`",
    )
    beyond: Literal["warn", "stop"] = Field("warn", description="what happens when a metric leaves its bounds")
    checkpoint_every: int | None = Field(None, gt=0, description="steps between checkpoints; null writes none")
    keep_checkpoints: int = Field(1, gt=0, description="older ones are deleted once a newer one is complete")

    @field_validator("limits")
    @classmethod
    def _ordered(
        cls, limits: dict[str, tuple[float | None, float | None]]
    ) -> dict[str, tuple[float | None, float | None]]:
        for name, (low, high) in limits.items():
            if low is not None and high is not None and low > high:
                raise ValueError(f"the bounds of {name} are [low, high], got [{low:g}, {high:g}]")
        return limits

    @model_validator(mode="after")
    def _consistent(self) -> "Train":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of train.steps and train.epochs; set the other one to null")
        if self.minibatch_size is not None and self.batch_size % self.minibatch_size:
            raise ValueError(f"minibatch_size {self.minibatch_size} does not divide batch_size {self.batch_size}")
        return self


class Evaluate(Section):
    """What is measured on held-out data; at the start, at the end, and in between."""

    part: Literal["test", "validation"] = Field(
        "test", description="of the data, that start and end are measured on; validation is for choosing settings"
    )
    every: int | None = Field(
        None, gt=0, description="steps between evaluations on validation rows; null is start and end"
    )
    rows: int = Field(512, gt=0, description="held-out rows, at most")
    prompts: int = Field(128, ge=0, description="held-out prompts to sample from, at most; 0 samples nothing")
    completions: int = Field(1, gt=0, description="samples of each prompt")
    sampling: Sampling = Field(Sampling(), description="how they are drawn")
    gold: Opinion | None = Field(
        None,
        description="feedback that scores samples, and rollouts to be watched: the reward that counts; nothing learns from it",
    )
    judge: Opinion | None = Field(
        None, description="feedback that says whether samples beat the reference's on the same prompts: the win rate"
    )
    against: str | None = Field(
        None,
        description="finished run folder whose test samples `judge` compares with; null is the reference's own samples",
    )
    batch_size: int = Field(32, gt=0, description="prompts in one forward pass")
    confidence: float = Field(0.95, gt=0, lt=1, description="of the intervals around every estimate")

    @model_validator(mode="after")
    def _somebody_judges(self) -> "Evaluate":
        if self.against is not None and self.judge is None:
            raise ValueError("against names whom to compare with; say who judges, in evaluate.judge, or leave it out")
        if self.judge is not None and not self.prompts:
            raise ValueError("judge compares samples, and evaluate.prompts is 0: nothing is sampled")
        return self


class Wandb(Section):
    """Weights & Biases; offline unless a login is present."""

    project: str = Field("prefopt", description="project at W&B")
    entity: str | None = Field(None, description="user or team; null is the login's own")
    name: str | None = Field(None, description="of the run at W&B; null is the run folder's")
    group: str | None = Field(None, description="runs that belong together")
    tags: Names = Field((), description="labels of the run")
    mode: Literal["auto", "online", "offline"] = Field("auto", description="auto is online where a login is present")


class Track(Section):
    """Where numbers go; metrics.jsonl is always written."""

    every: int = Field(1, gt=0, description="steps between lines of metrics")
    wandb: Wandb | None = Field(None, description="also log to W&B; {} does, with these defaults")
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

    model_config = ConfigDict(coerce_numbers_to_str=True)  # `name: 2024`, `variables: {size: 135}`

    name: str = Field(
        "run", pattern=r"^[^/\\]+$", description="names the run folder; a file's default is its folder and name"
    )
    variables: dict[str, str] = Field(
        default_factory=dict, description="used elsewhere as ${name}; ${env:NAME} reads the environment"
    )
    seed: int = Field(0, ge=0, description="every seed that `seeds` does not give")
    seeds: Seeds = Field(Seeds(), description="one seed for each source of chance")
    policy: Policy = Field(description="the model that is trained")
    reference: Reference = Field(Reference(), description="what it is held near to")
    source: Source = Field(description="where the batches come from")
    feedback: Opinion | None = Field(
        None, description="what scores the policy's own completions: {name: RewardModel, model: runs/reward}"
    )
    cost: Opinion | None = Field(
        None, description="a second feedback, of what is to be kept low, for constrained objectives"
    )
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


Kind = typing.TypeVar("Kind", bound=Section)


def sections_of(path: str | Path) -> set[str]:
    """The keys at the top of a recipe of any kind, inherited ones included: they tell which kind it is.

    Raises:
        PrefoptError: no such file, or no recipe.
    """
    return set(_read(Path(path).expanduser(), seen=()))


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read the recipe of a run; `load` says how.

    Raises:
        PrefoptError: what `load` refuses.
    """
    return load(Recipe, path, overrides)


def load(kind: type[Kind], path: str | Path, overrides: Sequence[str] = ()) -> Kind:
    """Read a recipe of any kind, what it inherits, and the overrides.

    Args:
        kind: what it is a recipe of: `Recipe` is a run; it has a field `name`.
        path: a YAML file. Its `base:` names another, relative to it, whose keys it refines; `objective` and feedbacks
            are replaced whole.
        overrides: `dotted.key=value`, the value in YAML; items of a list go by their number, as in `objective.0.beta=0.3`.

    Raises:
        PrefoptError: no such file, no YAML, an unknown key (with the nearest known one), a value that cannot be.
    """
    return checked(kind, interpolated(read(path, overrides)), str(path))


def read(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What `load` checks: a file, what it inherits and the overrides, as one tree whose ${variables} are still there.

    Raises:
        PrefoptError: no such file, no YAML, an override that is none.
    """
    file = Path(path).expanduser()
    tree = _read(file, seen=())
    parent = file.resolve().parent.name
    tree.setdefault("name", f"{parent}-{file.stem}" if parent else file.stem)
    for override in overrides:
        _set(tree, override)
    return tree


def refined(tree: Mapping[str, Any], fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The tree with more on top, in order: dotted keys as overrides put them, all others as a recipe refines its base.

    An objective or feedback without a name changes the fields of the one that is there.

    Raises:
        PrefoptError: a dotted key leads through something that has no keys; begins with `where`.
    """
    merged = copy.deepcopy(dict(tree))
    for key, value in copy.deepcopy(dict(fields)).items():
        if key in WHOLE and isinstance(value, Mapping) and "name" not in value:
            for name, one in value.items():
                _put(merged, f"{key}.{name}", one, f"{where}: `{key}.{name}`")
        elif "." in key:
            _put(merged, key, value, f"{where}: `{key}`")
        else:
            merged = _merge(merged, _named({key: value}))
    return merged


def checked(kind: type[Kind], tree: Mapping[str, Any], where: str) -> Kind:
    """The tree as a recipe of that kind.

    Raises:
        PrefoptError: an unknown key (with the nearest known one), a value that cannot be.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise PrefoptError(explain(error, where, kind)) from None


def differences(one: Any, other: Any, key: str = "") -> list[str]:
    """The dotted keys in which two recipes, as `model_dump` gives them, differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = dict.fromkeys([*one, *other])
        return [d for k in keys for d in differences(one.get(k), other.get(k), f"{key}.{k}".lstrip("."))]
    return [] if one == other else [key]


def explain(error: ValidationError, where: str, kind: type[BaseModel] = Recipe) -> str:
    """A pydantic error, a line for each key that is wrong: where, what, and what to write instead."""
    known = {field.key: field for field in describe(kind)}
    lines = list(dict.fromkeys(_line(item, known) for item in error.errors()))
    return f"{where}: " + ("\n  ".join(["", *lines]) if len(lines) > 1 else lines[0])


def _line(item: Any, known: Mapping[str, "Described"]) -> str:
    # pydantic also names the branch of a union and the item of a list; 0 is left out because one objective needs no list.
    path = [
        str(part) for part in item["loc"] if part != 0 and not re.search(r"[\[(]|^(str|int|float|bool)$", str(part))
    ]
    key = ".".join(path)
    plain = ".".join(part for part in path if not part.isdigit())
    if item["type"] == "extra_forbidden":
        return f"unknown key `{key}`.{_suggestion(plain, known)}"
    if item["type"] == "missing":
        return f"`{key}` is missing: {known[plain].description if plain in known else 'it is required'}"
    if item["type"] == "value_error":
        return f"`{key}`: {item['msg'].removeprefix('Value error, ')}"
    message = (
        item["msg"].replace("Input should", "must").replace("a valid integer", "an integer").partition(", unable to")[0]
    )
    if item["type"] in ("model_type", "dict_type", "model_attributes_type"):
        message = "must hold keys and values"
    given = repr(item["input"])
    return f"`{key}` {message}, got {given if len(given) <= 80 else given[:77] + '…'}"


def _suggestion(key: str, known: Iterable[str]) -> str:
    """The nearest key of the section, or the same word in another section, or else what the section has."""
    parent, _, last = key.rpartition(".")
    siblings = [k for k in known if k.rpartition(".")[0] == parent]
    elsewhere = [k for k in known if k.rpartition(".")[2] == last]
    has = [k.rpartition(".")[2] for k in siblings]
    guess = nearest(last, has) or (nearest(elsewhere[0], elsewhere) if elsewhere else "")
    return guess or f" {f'`{parent}`' if parent else 'A recipe'} has: {', '.join(has)}"


class Described(NamedTuple):
    """One field of a recipe, for help and docs."""

    key: str
    kind: str
    default: str
    description: str


def describe(section: type[BaseModel], prefix: str = "") -> Iterator[Described]:
    """Every field of a recipe, nested sections after their own line."""
    for name, info in section.model_fields.items():
        default = "required" if info.is_required() else _show(info.get_default(call_default_factory=True))
        yield Described(prefix + name, _kind(info.annotation), default, info.description or "")
        for nested in _sections_in(info.annotation):
            # A term's source is like the run's, and every feedback like the first.
            if not (nested is Source and prefix) and not (nested is Feedback and prefix + name != "feedback"):
                yield from describe(nested, f"{prefix}{name}.")


def _show(default: Any) -> str:
    """A default as it would stand in a recipe; nothing for a section, whose fields have their own."""
    if isinstance(default, BaseModel):
        return ""
    if isinstance(default, tuple):
        return f"[{', '.join(map(_show, default))}]"
    if isinstance(default, float):
        return f"{default:g}".replace("e-0", "e-")
    return yaml.safe_dump(default, default_flow_style=True).removesuffix("...\n").strip()


def _kind(annotation: Any) -> str:
    """A type in words."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _kind(parts[0])
    if origin is Literal:
        return " | ".join(map(str, parts))
    if origin in (typing.Union, types.UnionType):
        words = [_kind(part) for part in parts]
        return " or ".join(word for word in words if not (word == "text" and "text or list" in words))
    if origin is tuple:
        lists: dict[Any, str] = {str: "text or list"}
        lists |= dict.fromkeys((Term, Shape, Feedback), "name, section or list")
        return lists.get(parts[0], "list") if parts[-1] is Ellipsis else f"{len(parts)} {_kind(parts[0])}s"
    if annotation is Feedback:
        return "name or section"
    if _sections_in(annotation):
        return "section"
    words_for = {int: "integer", float: "number", str: "text", bool: "true | false", type(None): "null"}
    return words_for.get(annotation, "mapping")


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in typing.get_args(annotation) for section in _sections_in(part)]


def _read(file: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """A file and what it inherits, as one tree."""
    base_of = f" (the base of {seen[-1]})" if seen else ""
    if not file.is_file():
        known = [f.name for f in file.parent.glob("*.y*ml")] if file.parent.is_dir() else []
        raise PrefoptError(f"no recipe {file}{base_of}.{nearest(file.name, known)}")
    if file.resolve() in seen:
        raise PrefoptError(f"{file} inherits from itself: {' → '.join(str(f) for f in (*seen, file.resolve()))}")
    try:
        tree = _parse(file.read_text(encoding="utf-8"), str(file))
    except UnicodeDecodeError:
        raise PrefoptError(f"{file} is not a text file in UTF-8") from None
    if not isinstance(tree, dict):
        found = "nothing" if tree is None else f"a {type(tree).__name__}"
        raise PrefoptError(f"{file} must hold keys and values, got {found}")
    base = tree.pop("base", None)
    tree = _absolute(_named(tree), file.resolve().parent)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise PrefoptError(f"{file}: `base` must name one other recipe, got {base!r}")
    return _merge(_read(file.parent / Path(base).expanduser(), (*seen, file.resolve())), tree)


def _named(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree with `objective: DPO` written out as `{name: DPO}`, so that overrides can reach into it; feedbacks alike."""
    named = tree | {key: _term(tree[key]) for key in ("objective", "feedback", "cost", "judge") if key in tree}
    if isinstance(named.get("objective"), list):
        named["objective"] = [_term(term) for term in named["objective"]]
    if isinstance(measured := named.get("evaluate"), dict):
        named["evaluate"] = measured | {key: _term(measured[key]) for key in ("gold", "judge") if key in measured}
    return named


def _absolute(value: Any, folder: Path) -> Any:
    """File names that are found beside the recipe, made absolute, so that the resolved recipe works from anywhere."""
    if isinstance(value, Mapping):
        return {key: _absolute(item, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [_absolute(item, folder) for item in value]
    if isinstance(value, str):
        name, colon, rest = value.partition(":")
        relative = name.startswith(("./", "../"))
        if (relative or Path(name).suffix in FILES) and (
            glob.glob(name, root_dir=folder, recursive=True) or (relative and (folder / name).exists())
        ):
            return f"{os.path.normpath(folder / name)}{colon}{rest}"
    return value


def _merge(base: Mapping[str, Any], child: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    merged = dict(base)
    for key, value in child.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        where = prefix + key if isinstance(key, str) else prefix
        merged[key] = _merge(merged[key], value, f"{where}.") if both and where not in WHOLE else value
    return merged


def _set(tree: dict[str, Any], override: str) -> None:
    """Put an override's value where its dotted key says."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.strip().split(".")):
        raise PrefoptError(f"{override!r} is no override; write key=value, for example train.lr=1e-6")
    _put(tree, key.strip(), _absolute(_parse(text, repr(override)), Path.cwd()), repr(override))


def _put(tree: dict[str, Any], key: str, value: Any, said: str) -> None:
    """Put a value where a dotted key says; messages begin with what was `said`."""
    *path, last = key.split(".")
    if path and path[0] == "objective" and isinstance(tree.get("objective"), str):
        tree["objective"] = {"name": tree["objective"]}  # the short form, of an objective with its defaults
    if path and path[0] == "objective" and (*path[1:], last)[0].isdigit() and isinstance(tree.get("objective"), dict):
        tree["objective"] = [tree["objective"]]  # objective.0.beta=… also where there is only one
    node: Any = tree
    for depth, part in enumerate(path):
        where = ".".join(path[: depth + 1])
        if isinstance(node, dict):
            node[part] = {} if node.get(part) is None else node[part]
        node = node[_place(node, part, said, ".".join(path[:depth]))]
        if not isinstance(node, dict | list):
            raise PrefoptError(f"{said}: `{where}` is {node!r}, which has no keys")
    node[_place(node, last, said, ".".join(path))] = value


def _place(node: Any, part: str, said: str, where: str) -> Any:
    """The key or the number of an item that `part` stands for in `node`."""
    if isinstance(node, dict):
        return part
    if not part.isdigit():
        raise PrefoptError(f"{said}: `{where}` is a list; say which item, as in {where}.0.{part}")
    if int(part) >= len(node):
        raise PrefoptError(f"{said}: `{where}` has {len(node)} items, numbered from 0")
    return int(part)


class _Loader(yaml.SafeLoader):
    """YAML, except that 1e-6 is a number, as everyone who types it means, and that a key is there only once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping; refuses a key that is given twice, of which YAML would silently take the last."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"{key.value!r} is there twice", problem_mark=key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise PrefoptError(f"{where}{line}: not YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise PrefoptError(f"{where} is not YAML: {error}") from None


def interpolated(tree: Mapping[str, Any], more: Mapping[str, str] = types.MappingProxyType({})) -> dict[str, Any]:
    """The tree with every ${name} replaced, by its own variables and by `more`.

    Raises:
        PrefoptError: a variable that there is not, or that is made of itself.
    """
    given = tree.get("variables")
    variables = BUILT_IN | ({k: str(v) for k, v in given.items()} if isinstance(given, Mapping) else {}) | dict(more)

    def value_of(name: str, through: tuple[str, ...]) -> str:
        if name.startswith("env:"):
            if name[4:] not in os.environ:
                raise PrefoptError(f"${{{name}}}: the environment variable {name[4:]} is not set")
            return os.environ[name[4:]]
        if name not in variables:
            raise PrefoptError(f"unknown variable ${{{name}}}.{nearest(name, variables)} Known: {', '.join(variables)}")
        if name in through:
            raise PrefoptError(f"the variable ${{{name}}} is made of itself: {' → '.join((*through, name))}")
        return os.path.expanduser(replaced(variables[name], (*through, name)))

    def replaced(text: str, through: tuple[str, ...] = ()) -> str:
        return re.sub(r"\$\{([^}]*)\}", lambda match: value_of(match[1], through), text)

    def walk(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: walk(item) for key, item in value.items()}
        if isinstance(value, list):
            return [walk(item) for item in value]
        return replaced(value) if isinstance(value, str) else value

    return walk({k: v for k, v in tree.items() if k != "variables"}) | {"variables": tree.get("variables") or {}}
