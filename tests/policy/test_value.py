import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

from prefopt import Needs, PrefoptError, recipe
from prefopt.policy import Policy, Reference, load_policy
from prefopt.policy.critic import Critic, ValueHead
from prefopt.policy.loading import load_critic

VALUES = Needs(values=True)


def nonzero(critic):
    """The same critic with a head that says something."""
    with torch.no_grad():
        for parameter in critic.parameters():
            if not parameter.any():
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    return critic


@pytest.fixture
def shared(make_llama, tokenizer):
    return Policy(make_llama(), tokenizer, nonzero(ValueHead(16, torch.float64)))


@pytest.fixture
def apart(make_llama, tokenizer):
    return Policy(make_llama(), tokenizer, nonzero(Critic(make_llama(seed=1).model)))


@pytest.mark.parametrize("kind", ["shared", "apart"])
def test_values_see_only_the_tokens_before(kind, request, make_batch):
    policy = request.getfixturevalue(kind)
    batch = make_batch(prompts=2, completions=2, holes=True)
    values = policy(batch, VALUES).values
    assert values.shape == batch.mask.shape
    assert (values[~batch.mask] == 0).all()
    head = policy.critic if kind == "shared" else policy.critic.head
    backbone = policy.causal.model if kind == "shared" else policy.critic.backbone
    for b, prompt in enumerate(batch.prompt_ids):
        for k in range(2):
            for t in batch.mask[b, k].nonzero()[:, 0].tolist():
                seen = torch.tensor([[*prompt, *batch.completion_ids[b, k, :t].tolist()]])
                expected = head.linear(backbone(input_ids=seen).last_hidden_state[0, -1])
                torch.testing.assert_close(values[b, k, t], expected[0], atol=1e-10, rtol=0)


def test_values_start_at_zero_and_learn(make_llama, tokenizer, make_batch):
    policy, batch = Policy(make_llama(), tokenizer, ValueHead(16, torch.float64)), make_batch()
    outputs = policy(batch, VALUES)
    assert (outputs.values == 0).all()
    (outputs.values - 1)[batch.mask].square().sum().backward()
    assert policy.critic.linear.weight.grad.abs().sum() > 0


def test_a_shared_head_also_moves_the_policy_and_a_critic_does_not(shared, apart, make_batch):
    for policy, moves in ((shared, True), (apart, False)):
        policy(make_batch(), VALUES).values.sum().backward()
        gradients = [p.grad for p in policy.model.parameters() if p.grad is not None]
        assert bool(gradients) is moves


def test_values_without_the_chunked_head(shared, make_batch):
    """An architecture whose head is not known keeps its own; the states behind it are the same."""
    batch = make_batch()
    expected = shared(batch, VALUES)
    shared._head = None
    found = shared(batch, VALUES)
    torch.testing.assert_close(found.values, expected.values)
    torch.testing.assert_close(found.logps, expected.logps)


def test_a_reference_has_no_values(shared, make_batch):
    assert Reference(shared)(make_batch(), VALUES).values is None


def test_a_critic_of_the_recipe(lm_folder, tokenizer, make_batch, tmp_path):
    spec = recipe.Policy(model=str(lm_folder), critic={"model": str(lm_folder)})
    policy = load_policy(spec, tokenizer, seed=0)
    policy.critic = load_critic(spec.critic, policy, spec)
    assert isinstance(policy.critic, Critic)
    assert all(p.requires_grad for p in policy.critic.parameters())
    assert (policy(make_batch(), VALUES).values == 0).all()
    policy.save(tmp_path)
    assert load_file(tmp_path / "critic.safetensors").keys() == policy.critic.state_dict().keys()
    assert isinstance(load_critic(recipe.Critic(), policy, spec), ValueHead)


def test_a_policy_brings_its_critic(lm_folder, tokenizer, tmp_path):
    spec = recipe.Policy(model=str(lm_folder))
    policy = load_policy(spec, tokenizer, seed=0)
    policy.critic = load_critic(spec.critic, policy, spec)
    torch.nn.init.normal_(policy.critic.linear.weight)
    policy.save(tmp_path)
    again = load_critic(spec.critic, policy, recipe.Policy(model=str(tmp_path)))
    torch.testing.assert_close(again.linear.weight, policy.critic.linear.weight)
    other = load_critic(recipe.Critic(model=str(lm_folder)), policy, recipe.Policy(model=str(tmp_path)))
    assert (other.head.linear.weight == 0).all()  # of another kind: a new one


@pytest.mark.parametrize("seed", range(8))
def test_a_critic_that_sees_what_follows_is_refused(seed, lm_folder, tokenizer, tmp_path):
    """However little it makes of it: random weights let the next token change a state by 1e-3 or so."""
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        BertModel(config).save_pretrained(tmp_path)
    spec = recipe.Policy(model=str(lm_folder), critic={"model": str(tmp_path)})
    with pytest.raises(PrefoptError, match="reads in both directions"):
        load_critic(spec.critic, load_policy(spec, tokenizer, seed=0), spec)


def test_a_critic_must_read_the_same_tokens(make_llama, lm_folder, tmp_path, tokenizer):
    make_llama(vocab_size=25).save_pretrained(tmp_path)
    spec = recipe.Policy(model=str(lm_folder), critic={"model": str(tmp_path)})
    with pytest.raises(PrefoptError, match=r"the critic .* knows 25 tokens"):
        load_critic(spec.critic, load_policy(spec, tokenizer, seed=0), spec)
