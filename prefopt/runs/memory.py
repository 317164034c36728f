"""How much memory a run takes on each process, estimated before anything is loaded."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from huggingface_hub import try_to_load_from_cache
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from prefopt import recipe
from prefopt.policy import find_model
from prefopt.policy.compat import is_slow_on_cpu
from prefopt.policy.finding import CONFIGS, adapter_config, base_of, loaded
from prefopt.policy.head import CHUNK_ELEMENTS
from prefopt.runs.activations import kept
from prefopt.runs.micro_batches import MicroBatch
from prefopt.runs.planning import Plan
from prefopt.training.devices import computes_on_cpu, launched_processes, mixed_precision

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
STATES = {"adamw": 2, "muon": 1, "rmsprop": 1, "sgd": 0, "adafactor": 0}
"""Numbers that an optimiser keeps for each weight that it trains, in the weight's bytes; of one's own, 2."""

STATE_BYTES = {"adamw_8bit": 2 + 2 * 4 / 256, "paged_adamw_8bit": 2 + 2 * 4 / 256, "paged_adamw": 8}
"""Bytes that those of bitsandbytes keep for each weight, whatever its own; of 8 bits, with a scale for each block of 256."""

LEVEL_BYTES = {True: 0.5 + 1 / 64 + 4 / (64 * 256), False: 0.5 + 4 / 64}
"""Bytes of a weight in 4 bits with its share of a block's scale, which may be quantised, too (`policy.quantization.double`)."""

WITH_MODELS = {"RewardModel", "Judge"}
"""Feedbacks whose `model` is one that they load."""

KEPT, KEPT_CHECKPOINTED = 42, 2
"""Bytes that a Llama's layer keeps of a token for the backward pass, for each unit of its width, in 16-bit arithmetic; where there
is no configuration to be asked."""

IN_TURN = "in the layer that backward is in"

Moment = Literal["always", "update", "head", "layers", "drawing"]


@dataclass(frozen=True)
class Size:
    """What the estimate needs to know of a model.

    Attributes:
        parameters: P.
        layers: L.
        width: d, of its hidden states.
        inner: of the layers' widest states.
        kv_width: numbers that a layer keeps of a token to attend to, keys and values together.
        vocabulary: rows of its head; 0 where it has none.
        ends: Σ (inputs + outputs) over its linear layers, without the head: of what a LoRA adapter has r times as many.
        linear: weights of these layers.
        widest: weights of the largest.
        outside: weights of embedding and head, the same ones once.
        source: where this is from.
    """

    parameters: float
    layers: float
    width: float
    inner: float
    kv_width: float
    vocabulary: float
    ends: float
    linear: float
    widest: float
    outside: float
    source: str


@dataclass(frozen=True)
class Part:
    """One of the things that take memory.

    Attributes:
        what: its name.
        size: bytes; None where the size of its model is not known.
        formula: how it comes about, for people.
        moment: when it is there: an update and the drawing of completions take turns; in an update, the head and the layers.
    """

    what: str
    size: float | None
    formula: str
    moment: Moment = "always"


def peak(parts: Sequence[Part]) -> float:
    """The most bytes that are taken at a time, of parts whose size is known."""
    by_moment = {moment: sum(part.size or 0 for part in parts if part.moment == moment) for moment in get_args(Moment)}
    of_update = by_moment["update"] + max(by_moment["head"], by_moment["layers"])
    return by_moment["always"] + max(of_update, by_moment["drawing"])


def estimate_memory(plan: Plan, micro: MicroBatch) -> list[Part]:
    """What each process keeps.

    With P weights of which T are trained, each of w bytes: weights P·w, gradients T·w, optimiser states n·T·w (`STATES`), P·w for
    each frozen model; of a base in 4 bits about half a byte for each weight of its layers. What a model keeps of a token for the
    backward pass is counted in its own forward pass (`activations`), or taken to be that of a Llama where there is no
    configuration; on a CPU attention copies the keys and values of a prompt for each of its completions. In turns there are, in the
    head, one chunk of logits, twice, and in a layer, two gradients as wide as it gets, and with gradient checkpointing all that
    this layer keeps, computed again: the larger counts. In an optimiser step of one micro-batch what is kept from the forward pass
    goes as gradients come, so that the larger of the two counts. Sharded, weights, gradients, states and the reference
    are divided by the number of processes, and beside its share each has embedding, head and two layers whole, with their
    gradients. Rollouts keep keys and values of all tokens that they draw at a time. The libraries' own memory and fragmentation,
    a GB or several, are not counted. Against measurements: experiments/memory.

    Args:
        plan: of the run.
        micro: the largest micro-batch.
    """
    settings = plan.recipe
    size = size_of(plan.model)
    parts = [*_trained("policy", size, settings, settings.policy.adapter), *_frozen(plan)]
    if size is None:
        return [*parts, Part("activations", None, "")]
    parts += _of_an_update(plan, size, micro, next(part for part in parts if part.what == "policy: gradients"))
    if settings.source.rollouts is not None:
        parts.append(_keys_and_values(size, settings, settings.source.rollouts, micro.longest))
    return parts


def size_of(name: str) -> Size | None:
    """From its configuration where that is on disk, or else, roughly, from a count in its name, as in pythia-2.8b.

    None where there is neither.
    """
    if not _has_config(name):
        return _size_by_name(name)
    if (adapter := adapter_config(name)) is not None:
        return size_of(base_of(name, adapter))
    model = loaded(name, "model", lambda: _without_weights(name))
    text = model.config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    per_head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    head = model.get_output_embeddings()
    linears = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
    ends = {id(m.weight): m.weight.numel() for m in (model.get_input_embeddings(), head) if m is not None}
    return Size(
        sum(p.numel() for p in model.parameters()),
        text.num_hidden_layers,
        text.hidden_size,
        getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        2 * heads * per_head,
        0 if head is None else head.weight.shape[0],
        sum(m.in_features + m.out_features for m in linears),
        sum(m.weight.numel() for m in linears),
        max((m.weight.numel() for m in linears), default=0),
        sum(ends.values()),
        "by its configuration",
    )


def _without_weights(name: str) -> Any:
    """The model, its weights on no device."""
    config = AutoConfig.from_pretrained(name, local_files_only=True)
    kinds = {"ForCausalLM": AutoModelForCausalLM, "ForSequenceClassification": AutoModelForSequenceClassification}
    architecture = next(iter(config.architectures or ()), "")
    kind = next((auto for ending, auto in kinds.items() if architecture.endswith(ending)), AutoModel)
    with torch.device("meta"):
        return kind.from_config(config)


def _has_config(name: str) -> bool:
    """A folder of a model or an adapter, or a hub id that was downloaded before."""
    if Path(name).is_dir():
        return any((Path(name) / file).is_file() for file in CONFIGS)
    return any(isinstance(try_to_load_from_cache(name, file), str) for file in CONFIGS)


def _size_by_name(name: str) -> Size | None:
    """Layers of 12·d² weights, d = 128·L: about what decoders from 1 to 70 billion weights have."""
    found = re.findall(r"(?<![\d.])(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", name.rpartition("/")[2].lower())
    if not found:
        return None
    number, unit = found[0]
    parameters = float(number) * {"b": 1e9, "m": 1e6}[unit]
    layers = (parameters / (12 * 128**2)) ** (1 / 3)
    width = 128 * layers
    ends, widest = 18 * width * layers, 4 * width**2
    source = "by the name of the model, roughly"
    return Size(parameters, layers, width, 4 * width, 2 * width, 0, ends, parameters, widest, 0, source)


def _trained(
    what: str, size: Size | None, settings: recipe.Recipe, adapter: recipe.AnyAdapter | None
) -> Iterator[Part]:
    if size is None:
        yield Part(f"{what} with gradients and optimiser", None, "")
        return
    each = BYTES[settings.policy.dtype]
    quantization = settings.policy.quantization if adapter is not None else None
    share, divided = _share(settings)
    trained, who = size.parameters, f"{_count(size.parameters)} × "
    if adapter is not None:
        rank = adapter.r if isinstance(adapter, recipe.Adapter) else adapter.fields.get("r", 8)
        trained = (rank if isinstance(rank, int) else 8) * size.ends  # of LoRA; other methods of peft mostly have fewer
        who = f"{_count(trained)} of the adapter × "
    weights, formula = _held(size, each, quantization)
    of_trained = max(each, 4) if adapter is not None else each  # peft has adapters in 32 bits
    name = settings.train.optimizer.name
    states = STATE_BYTES.get(name, STATES.get(name, 2) * of_trained)
    yield Part(f"{what}: weights", weights * share, formula + divided)
    yield Part(f"{what}: gradients", trained * of_trained * share, f"{who}{of_trained} B{divided}", "update")
    yield Part(f"{what}: optimiser", trained * states * share, f"{who}{states:.3g} B ({name}){divided}")


def _held(size: Size, each: int, quantization: recipe.Quantization | None) -> tuple[float, str]:
    """Bytes of a model's weights, and how they come about."""
    if quantization is None:
        return size.parameters * each, f"{_count(size.parameters)} parameters ({size.source}) × {each} B"
    level, rest = LEVEL_BYTES[quantization.double], size.parameters - size.linear
    formula = (
        f"{_count(size.linear)} in {quantization.type} × {level:.2f} B + {_count(rest)} ({size.source}) × {each} B"
    )
    return size.linear * level + rest * each, formula


def _share(settings: recipe.Recipe) -> tuple[float, str]:
    """What each process has of weights that are trained, or compared with, and the words for it."""
    processes = launched_processes() if settings.train.shard is not None else 1
    return 1 / processes, f" ÷ {processes} processes" if processes > 1 else ""


def _frozen(plan: Plan) -> Iterator[Part]:
    """Critic, reference and reward models."""
    settings, needs = plan.recipe, plan.needs
    if needs.values and settings.policy.critic.model is not None:
        yield from _trained("critic", size_of(find_model(settings.policy.critic.model)), settings, None)
    spec = settings.reference
    if plan.compares and not needs.rewards:
        if settings.policy.adapter is not None and spec.model is None and spec.every is None:
            yield Part("reference", 0, "the policy without its adapter")
        else:
            name = plan.model if spec.model is None else find_model(spec.model)
            own = settings.policy.quantization
            yield _copy("reference", name, spec.dtype or settings.policy.dtype, own, *_share(settings))
    for key, feedback in (("feedback", settings.feedback), ("cost", settings.cost), ("gold", settings.evaluate.gold)):
        for names, dtype in _models(() if feedback is None else (feedback,)):
            yield _copy(f"{key}: its model", find_model(names), dtype)


def _of_an_update(plan: Plan, size: Size, micro: MicroBatch, gradients: Part) -> Iterator[Part]:
    """Activations and logits of one micro-batch."""
    settings = plan.recipe
    each = 2 if _mixed(settings) else BYTES[settings.policy.dtype]
    parts = [*_activations(plan, size, micro), *_copies(plan, size, micro, each)]
    yield from parts
    yield from _whole_in_turns(settings, size, each)
    formula = f"{micro.tokens:,} tokens × 2 × {size.inner:,.0f} × {each} B, {IN_TURN}"
    yield Part("their gradients", micro.tokens * 2 * size.inner * each, formula, "layers")
    chunk = min(micro.predicted * size.vocabulary, CHUNK_ELEMENTS)
    if chunk and not plan.needs.rewards:
        formula = f"{chunk / size.vocabulary:,.0f} tokens × {size.vocabulary:,.0f} × 2 × 4 B, before the layers' turn"
        yield Part("logits", 2 * chunk * 4, formula, "head")
    if micro.alone and gradients.size is not None:
        through = sum(part.size or 0 for part in parts if part.moment == "update")
        yield Part("freed meanwhile", -min(through, gradients.size), "activations go as gradients come", "update")


def _activations(plan: Plan, size: Size, micro: MicroBatch) -> Iterator[Part]:
    """What the forward pass keeps, and what gradient checkpointing computes again of a layer when its turn comes."""
    settings = plan.recipe
    again, tokens = settings.policy.gradient_checkpointing, f"at most {micro.tokens:,} tokens"
    of_token = None if _is_rough(size) else kept(_whole(plan.model), settings.policy, _mixed(settings))
    if of_token is None:
        half = _mixed(settings) or BYTES[settings.policy.dtype] == 2
        unit, twice = size.width * (1 if half else 2), "" if half else " × 2"
        by_layer = KEPT_CHECKPOINTED if again else KEPT
        formula = f"{tokens} × {size.layers:.0f} layers × {by_layer} × {size.width:.0f} B{twice}"
        bytes_kept, recomputed = micro.tokens * size.layers * by_layer * unit, KEPT * unit if again else 0
    else:
        if _share(settings)[0] < 1 and _mixed(settings):
            of_token = of_token._replace(by_layer=0)  # layers are gathered in 16 bits, so that none is copied
        bytes_kept, recomputed = of_token.of(micro.tokens, size.layers), of_token.recomputed
        formula = f"{tokens} × {size.layers:.0f} layers × {of_token.by_token_and_layer:,.0f} B, and beside"
    yield Part("activations", bytes_kept, formula, "update")
    if again:
        formula = f"{tokens} × {recomputed:,.0f} B, {IN_TURN}"
        yield Part("computed again", micro.tokens * recomputed, formula, "layers")


def _copies(plan: Plan, size: Size, micro: MicroBatch, each: int) -> Iterator[Part]:
    """Of keys, values and outputs, by attention to the segments of packed rows (`policy.rows.attention`)."""
    policy = plan.recipe.policy
    if not micro.attended or not computes_on_cpu() or policy.attention not in (None, "sdpa"):
        return
    at_a_time, own = 1 if policy.gradient_checkpointing else size.layers, micro.tokens
    if each == 2 and is_slow_on_cpu(torch.bfloat16):  # attention is computed in fp32, of queries in fp32, too
        own, each = 2 * micro.tokens, 4
    copies = at_a_time * (2 * micro.attended + own) * size.width * each
    formula = f"(2 × {micro.attended:,} + {own:,}) tokens × {at_a_time:.0f} layers × {size.width:.0f} × {each} B"
    yield Part("copies for attention", copies, formula, "layers" if policy.gradient_checkpointing else "update")


def _whole_in_turns(settings: recipe.Recipe, size: Size, each: int) -> Iterator[Part]:
    """What is whole of weights that are held in 4 bits, or divided among processes, while they are multiplied."""
    if settings.policy.quantization is not None:
        yield Part("a layer made whole", size.widest * each, f"{_count(size.widest)} × {each} B", "layers")
    if _share(settings)[0] < 1:
        whole, layer = BYTES[settings.policy.dtype], (size.parameters - size.outside) / max(size.layers, 1)
        twice = 2 if settings.policy.adapter is None else 1
        formula = (
            f"{twice} × ({_count(size.outside)} outside of layers × {whole} B + 2 layers × {_count(layer)} × {each} B)"
        )
        yield Part("gathered", twice * (size.outside * whole + 2 * layer * each), formula, "update")


def _is_rough(size: Size) -> bool:
    """Whether there is no configuration."""
    return not size.vocabulary and "roughly" in size.source


def _whole(name: str) -> str:
    """The model itself, or the one below adapters, which are merged into it."""
    adapter = adapter_config(name)
    return name if adapter is None else _whole(base_of(name, adapter))


def _keys_and_values(size: Size, settings: recipe.Recipe, rollouts: recipe.Rollouts, tokens: int) -> Part:
    """Of the completions that are drawn together."""
    rows = min(rollouts.batch_size, settings.train.batch_size * rollouts.completions)
    each = BYTES["bfloat16" if _mixed(settings) else settings.policy.dtype]
    formula = f"{rows} rows × {tokens:,} tokens × {size.layers:.0f} layers × {size.kv_width:.0f} × {each} B"
    return Part(
        "keys and values",
        rows * tokens * size.layers * size.kv_width * each,
        f"at most {formula}, while drawing",
        "drawing",
    )


def _models(feedbacks: Sequence[recipe.Feedback]) -> Iterator[tuple[Sequence[str], str]]:
    for feedback in feedbacks:
        names = feedback.fields.get("model")
        if feedback.name in WITH_MODELS and names:
            yield [names] if isinstance(names, str) else names, feedback.fields.get("dtype", "float32")
        yield from _models(feedback.members)


def _copy(
    what: str,
    name: str,
    dtype: str,
    quantization: recipe.Quantization | None = None,
    share: float = 1,
    divided: str = "",
) -> Part:
    size = size_of(name)
    if size is None:
        return Part(what, None, f"{name}: size not known before it is there")
    weights, formula = _held(size, BYTES[dtype], quantization)
    return Part(what, weights * share, formula + divided)


def _mixed(settings: recipe.Recipe) -> bool:
    """Whether arithmetic is in 16 bits on weights of more: where it is asked for, and where a device has bf16."""
    return mixed_precision(settings.train.precision) != "no" and BYTES[settings.policy.dtype] > 2


def _count(number: float) -> str:
    """3.2e9 as 3.2 billion."""
    for unit, name in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number:.0f}"
