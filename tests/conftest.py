"""Tiny models for every test: random, made in a moment, each process its own."""

import atexit
import copy
import os
import shutil
import tempfile
from uuid import uuid4

CACHE = tempfile.mkdtemp(prefix="prefopt-tests-")
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "OMP_NUM_THREADS": "1",
    "PREFOPT_CACHE": CACHE,
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_OFFLINE": "1",
    "WANDB_MODE": "offline",
}

from jaxtyping import install_import_hook

# Before anything of prefopt is imported: every call in every test checks these modules' shapes.
SHAPED = """evaluation.calibration objectives.maths objectives.parts objectives.online.advantage objectives.online.surrogate
policy.head"""
install_import_hook([f"prefopt.{module}" for module in SHAPED.split()], "beartype.beartype")

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from prefopt import Batch

torch.set_num_threads(1)

pytest_plugins = ["_judging", "_vllm"]

TEXT = """</s> <unk> <tool> . , the a film food view room is was seems very not good bad fine dull bright grim great awful
slow quick warm cold and but"""
WORDS = TEXT.split()
TINY = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,  # far from uniform, so that a mistake shows
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": None,
}


LONG = (
    *("test_bad_inputs.py", "test_tutorial.py", "test_search_recipes.py", "test_agents_page.py", "test_two_turn.py"),
    *("test_first_hour.py", "test_kills.py", "test_bandit_online.py", "test_study_kill.py", "test_saved_folders.py"),
    *("test_sharded_training.py", "test_executors.py", "test_train.py", "test_clusters.py", "test_wandb_resume.py"),
    *(
        "test_disks.py",
        "test_runs.py",
        "test_trl_reward_models.py",
        "test_exits.py",
        "test_labelling.py",
        "test_study_runs.py",
    ),
)
"""The files that take longest, in this order: begun last, they would be waited for by processes that have nothing else to do."""


@pytest.hookimpl(trylast=True)  # behind what the marks choose
def pytest_collection_modifyitems(items):
    """Begin the slow tests with the longest files."""
    if all("slow" in item.keywords for item in items):
        items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(autouse=True)
def own_cache():
    """Nothing that another test has computed."""
    os.environ["PREFOPT_CACHE"] = f"{CACHE}/{uuid4().hex}"


@pytest.fixture(scope="session")
def tiny():
    """The size of every tiny model: 30 words, EOS 0, no padding token."""
    return dict(TINY)


@pytest.fixture(scope="session")
def tokenizer():
    """One token a word."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="session")
def padded_tokenizer(tokenizer):
    """With a padding token, which the models know; scorers look for it."""
    own = copy.deepcopy(tokenizer)
    own.pad_token = "<unk>"
    return own


@pytest.fixture(scope="session")
def lm_folder(tmp_path_factory, tokenizer):
    """A random Llama with its tokenizer, in the Hugging Face format."""
    folder = tmp_path_factory.mktemp("tiny") / "lm"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(LlamaConfig(**TINY)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_batch():
    """A random batch of B prompts × K completions of up to T tokens, with `holes` in the mask and `absent` completions."""

    def make(prompts=3, completions=2, tokens=6, seed=0, holes=False, absent=(), **fields):
        draw = torch.Generator().manual_seed(seed)
        shape = (prompts, completions, tokens)
        lengths = torch.randint(2, tokens + 1, shape[:2], generator=draw)
        lengths[0, 0] = tokens
        for b, k in absent:
            lengths[b, k] = 0
        mask = torch.arange(tokens) < lengths[..., None]
        ids = torch.randint(1, len(WORDS), shape, generator=draw) * mask
        if holes:  # the second token came from a tool; a later one always follows it
            mask[..., 1] &= lengths < 3
        sizes = torch.randint(1, 5, (prompts,), generator=draw).tolist()
        prompt_ids = tuple(tuple(torch.randint(1, len(WORDS), (n,), generator=draw).tolist()) for n in sizes)
        return Batch(prompt_ids, ids, mask, **fields)

    return make
