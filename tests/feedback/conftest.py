import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, LlamaConfig


@pytest.fixture(scope="session")
def make_scorer_folder(tmp_path_factory, tiny, tokenizer):
    """A random scorer with its tokenizer, in the Hugging Face format; its head is far from 0."""

    def make(seed=0, config=LlamaConfig, **changes):
        folder = tmp_path_factory.mktemp("scorer")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            settings = tiny | {"num_labels": 1, "pad_token_id": 0} | changes
            model = AutoModelForSequenceClassification.from_config(config(**settings))
            torch.nn.init.normal_((model.score if config is LlamaConfig else model.classifier).weight)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def scorer_folder(make_scorer_folder):
    return make_scorer_folder()


@pytest.fixture(scope="session")
def bert_folder(make_scorer_folder):
    return make_scorer_folder(config=BertConfig, pad_token_id=1)
