"""Exporting a trained model as whole weights, which transformers reads alone, and measuring what that changes."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefopt import recipe
from prefopt.policy import Policy, Scorer, find_model, find_scorer, load_policy, load_scorer, load_tokenizer, reading_of
from prefopt.policy.adapters import merged
from prefopt.policy.finding import model_config, quantisation
from prefopt.policy.loading import no_writer
from prefopt.policy.policy import CRITIC
from prefopt.policy.pretrained import Loader, load_unmerged, load_weights
from prefopt.policy.scorer import FILE as MARK
from prefopt.policy.scorer_loading import is_scorer
from prefopt.runs.card import write_card
from prefopt.runs.folder import RunFolder, run_of
from prefopt.runs.gguf import find_converter, write_gguf
from prefopt.runs.inspecting import trained
from prefopt.support.errors import PrefoptError
from prefopt.support.files import locked, refuse_full, replacing_folder
from prefopt.support.out_of_memory import reraise_out_of_memory
from prefopt.types import Batch, Needs

DTYPES = ("float32", "bfloat16", "float16")

ROUNDING = 1e-3
"""How far two forms of one model may differ in what they say, for each unit of it. float32 that is added up in another order makes
1e-6 in small models, and 5e-5 in random ones of 32 layers, which amplify it most."""

WIDER = "export it in bfloat16, which reaches as far as float32, or in float32"
"""What to do about a dtype that ends too early."""

PROMPTS, PROMPT_TOKENS, COMPLETION_TOKENS = 4, 8, 16
"""The rows on which models are compared."""


@dataclass(frozen=True)
class Exported:
    """A model that was written as whole weights.

    Attributes:
        folder: where it is, in the Hugging Face format.
        dtype: of its weights.
        scorer: it gives rewards, and is no policy.
        measured_in: the dtype of the arithmetic in which the run measured the model; float32 for a folder without a run.
        difference: the largest difference of a reward, or of the log-prob of a token, between the folder as it is read again, in
            its dtype, and the model as the run measured it, over rows of random tokens.
        compared: how many rewards or log-probs that is the largest of.
        arithmetic: the same of the measured model itself, between the run's arithmetic and float32: what no export can undercut.
        gguf: the same weights for llama.cpp, where they were asked for.
    """

    folder: Path
    dtype: str
    scorer: bool
    measured_in: str
    difference: float
    compared: int
    arithmetic: float
    gguf: Path | None = None

    def __str__(self) -> str:
        what = f"{self.compared} rewards" if self.scorer else f"the log-probs of {self.compared} tokens"
        low = self.measured_in not in ("float32", "float64")
        own = f"; {self.measured_in} itself is up to {self.arithmetic:.1g} from float32" * low
        return (
            f"{self.folder} holds the whole weights in {self.dtype}: read again, they differ from the model as it was measured, in "
            f"{self.measured_in}, by at most {self.difference:.1g} in {what} of random text{own}"
            + (f"\n{self.gguf} holds them for llama.cpp" if self.gguf is not None else "")
        )


class _Source(NamedTuple):
    """What is exported: the model, and the run that trained it, with the arithmetic of that."""

    spec: recipe.Policy
    autocast: bool
    run: RunFolder | None = None

    @property
    def name(self) -> str:
        return find_model(self.spec.model)

    @property
    def computing(self) -> AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16) if self.autocast else nullcontext()

    @property
    def measured_in(self) -> str:
        return "bfloat16" if self.autocast else self.spec.dtype


def export(run_or_folder: str | Path, out: str | Path, dtype: str = "float32", gguf: str | None = None) -> Exported:
    """Write a trained policy or reward model as whole weights: adapters merged, tokenizer, chat template, generation settings.

    Of a finished run there is a model card, too.

    Adapters are merged in float32, and the sum is rounded once, to `dtype`. The folder is written whole or not at all, is read
    again, and compared with the model as it was measured, on the CPU. Of an adapter on weights in 4 bits (`policy.quantization`)
    the base is those weights as they were rounded.

    Args:
        run_or_folder: a run folder; or a folder or hub id of a model or an adapter.
        out: a folder that is new or empty.
        dtype: of the weights: float32, bfloat16 or float16.
        gguf: also write them as GGUF of this type, by llama.cpp's converter.

    Raises:
        PrefoptError: there is something in `out`; the run is not trained yet; the weights are quantised, or are no policy and no
            reward model; the adapter cannot be merged, or `dtype` cannot hold the weights; the
            converter is not here, or refuses.
    """
    folder = Path(out).expanduser()
    if dtype not in DTYPES:
        raise PrefoptError(f"dtype {dtype!r}: weights are exported in {', '.join(DTYPES)}")
    refuse_full(folder)
    converter = None if gguf is None else find_converter()
    source = _source(run_or_folder)
    scorer = _checked(source)
    tokenizer = load_tokenizer(source.spec)
    place = folder.resolve()  # of a link, what it leads to
    with locked(place), torch.no_grad():
        refuse_full(folder)  # another process may have exported to it meanwhile
        model = _load(source.spec, scorer, tokenizer, load_unmerged)
        rows = _rows(tokenizer, model)
        with source.computing:
            measured = _numbers(model, rows)
        if source.spec.quantization is not None:  # the rounded weights, in layers into which an adapter can be merged
            plain = source.spec.model_copy(update={"quantization": None})
            model = _load(plain, scorer, tokenizer, load_unmerged)
        model.to(torch.promote_types(model.model.dtype, torch.float32))
        exact = _numbers(model, rows)
        model = _merged(model, rows, exact, source.name)
        expected = _round(model, rows, source.name, getattr(torch, dtype))
        with replacing_folder(place) as staging:
            _save(model, source.name, staging)
            if source.run is not None and source.run.finished:
                write_card(source.run, staging)
            del model  # before the folder is read again: room for one copy is enough
            spec = recipe.Policy(model=(str(staging),), dtype=dtype, remote_code=source.spec.remote_code)
            again = _read_again(_load(spec, scorer, tokenizer, load_weights), rows, expected, source.name)
    converted = None if converter is None else write_gguf(converter, folder, str(gguf))
    difference, arithmetic = ((numbers - measured).abs().max().item() for numbers in (again, exact))
    return Exported(folder, dtype, scorer, source.measured_in, difference, len(measured), arithmetic, converted)


def _source(run_or_folder: str | Path) -> _Source:
    """The model of a run as its recipe loads it, or of any other folder or hub id in float32.

    Raises:
        PrefoptError: the run has trained no model yet, or there is no model.
    """
    place = Path(run_or_folder).expanduser()
    run, model = run_of(place)
    if not run.begun:
        return _Source(recipe.Policy(model=(str(run_or_folder),)), autocast=False)
    own = {"model": (str(model),), "tokenizer": None, "gradient_checkpointing": False}
    spec = trained(place).policy.model_copy(update=own)
    bf16 = run.manifest().get("device", {}).get("precision") == "bf16"
    # What a run measured at its end is of policy/, and not of a checkpoint.
    return _Source(spec, autocast=bf16, run=run if Path(model) == run.policy else None)


def _checked(source: _Source) -> bool:
    """Whether the model is a reward model; loads no weights.

    Raises:
        PrefoptError: the weights are quantised, or are no policy and no reward model.
    """
    name, remote_code = source.name, source.spec.remote_code
    config = model_config(name, remote_code)
    if method := quantisation(config):
        raise PrefoptError(
            f"the weights of {config.name_or_path or name} are quantised ({method}): an adapter that is merged into them is "
            "rounded to their few values, and what is exported would not be what was measured. Serve the adapter beside its base, "
            "with peft, or export a model that is not quantised"
        )
    if is_scorer(name, remote_code):
        find_scorer(source.spec.model, remote_code)  # refuses heads that are not trained
        return True
    if other := no_writer(config):
        raise PrefoptError(
            f"{name} is a {other}: what can be exported is a causal language model (…ForCausalLM) or a reward model "
            "(…ForSequenceClassification with one output)"
        )
    return False


def _load(spec: recipe.Policy, scorer: bool, tokenizer: PreTrainedTokenizerBase, weights: Loader) -> Policy | Scorer:
    if scorer:
        return load_scorer(spec, tokenizer, seed=0, trained=True, weights=weights).eval()
    return load_policy(spec, tokenizer, seed=0, weights=weights).eval()


def _rows(tokenizer: PreTrainedTokenizerBase, model: Policy | Scorer) -> Batch:
    """Rows of random tokens, which need no data; each ends with EOS."""
    embedding: Any = model.model.get_input_embeddings()
    known = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    ids = torch.tensor([number for number in known if number < embedding.weight.shape[0]])
    shape = (PROMPTS, PROMPT_TOKENS + COMPLETION_TOKENS)
    tokens = ids[torch.randint(len(ids), shape, generator=torch.Generator().manual_seed(0))]
    if tokenizer.eos_token_id is not None:
        tokens[:, -1] = tokenizer.eos_token_id
    prompts, completions = tokens[:, :PROMPT_TOKENS].tolist(), tokens[:, None, PROMPT_TOKENS:]
    return Batch(tuple(map(tuple, prompts)), completions, torch.ones_like(completions, dtype=torch.bool))


def _numbers(model: Policy | Scorer, rows: Batch) -> Tensor:
    """What a model says of the rows: the log-prob of each completion token, or the reward of each row; [N]."""
    if isinstance(model, Scorer):
        rewards = model(rows, Needs(rewards=True)).rewards
        return rewards.flatten()
    logps: Tensor = model(rows, Needs()).logps[rows.mask]
    return logps


def _merged(model: Policy | Scorer, rows: Batch, expected: Tensor, name: str) -> Policy | Scorer:
    """The model with its adapter merged; it must say of the rows what is expected.

    Raises:
        PrefoptError: peft cannot merge the adapter, or merged it is another model.
    """
    if not isinstance(model.model, PeftModel):
        return model
    try:
        weights = merged(model.model)
    except (NotImplementedError, RuntimeError, ValueError, AttributeError) as error:
        reraise_out_of_memory(error)
        raise PrefoptError(
            f"the adapter {name} cannot be merged ({error}): serve it beside its base, with peft"
        ) from error
    made = _around(weights, model)
    _refuse_difference(_numbers(made, rows), expected, f"the adapter {name}, merged,")
    return made


def _refuse_difference(found: Tensor, expected: Tensor, what: str) -> None:
    """Weights that are the same say the same, to the rounding of float32."""
    worst = (found - expected).abs().max().item()
    if not worst <= ROUNDING * max(expected.abs().max().item(), 1.0):
        raise PrefoptError(
            f"{what} would be another model: its numbers on random text differ by {worst:.2g}. Nothing was written; serve the "
            "adapter beside its base, with peft"
        )


def _round(model: Policy | Scorer, rows: Batch, name: str, dtype: torch.dtype) -> Tensor:
    """Round the weights to a dtype; what they then say of the rows, in float32.

    Raises:
        PrefoptError: the dtype cannot hold them.
    """
    weights = list(model.float().parameters())  # buffers stay as they are: transformers makes them anew, in float32
    for weight in weights:
        weight.data = weight.data.to(dtype).float()
    if not all(bool(weight.isfinite().all()) for weight in weights):
        raise PrefoptError(f"{dtype} cannot hold the weights of {name}: {WIDER}")
    numbers = _numbers(model, rows)
    for weight in weights:
        weight.data = weight.data.to(dtype)
    return numbers


def _read_again(model: Policy | Scorer, rows: Batch, expected: Tensor, name: str) -> Tensor:
    """What a model that was read from the new folder says of the rows, in its own dtype.

    Raises:
        PrefoptError: it overflows, or in float32 it says something else than the weights that were saved.
    """
    dtype = model.model.dtype
    numbers = _numbers(model, rows)
    if not numbers.isfinite().all():
        raise PrefoptError(f"{name} overflows in {dtype}: {WIDER}")
    weights: Any = model.model
    _refuse_difference(_numbers(_around(weights.float(), model), rows), expected, f"the exported {name}")
    return numbers


def _around(weights: PreTrainedModel, model: Policy | Scorer) -> Policy | Scorer:
    """These weights as a model of the same kind."""
    if isinstance(model, Scorer):
        return Scorer(weights, model.tokenizer, model.reading).eval()
    return Policy(weights, model.tokenizer).eval()


def _save(model: Policy | Scorer, name: str, folder: Path) -> None:
    """Weights, tokenizer and settings; a critic as it is; the mark of a reward model only where it has one."""
    model.save(folder)
    if (
        isinstance(model, Scorer) and reading_of(name) is None
    ):  # it was trained by others, and reads as transformers does
        (folder / MARK).unlink()
    if (critic := Path(name) / CRITIC).is_file():
        copyfile(critic, folder / CRITIC)
