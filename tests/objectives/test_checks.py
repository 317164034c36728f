"""The contract passes on good objectives, and a planted fault of each kind is caught with a message that teaches."""

import dataclasses
import random
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch.nn.functional import logsigmoid

from prefopt import Loss, Needs, Targets, check_objective
from prefopt.objectives import CATALOGUE, DPO, GRPO, PPO, RLOO, SFT, BradleyTerry, ReinforcePlusPlus
from prefopt.objectives.contract import CHECKS, ContractError

ONLINE = [
    PPO(estimator="exact", placement="loss", tis=2.0, whiten_rewards=True, target=6.0),
    PPO(beta=0.0, epsilon_v=None),
    RLOO(estimator="k2", placement="loss"),
    RLOO(beta=0.0),
    GRPO(estimator="exact", tis=2.0, e=0.0),
    GRPO(beta=0.0),
    ReinforcePlusPlus(baseline="group", estimator="k2", placement="loss"),
]
"""Objectives whose needs are other ones than those of their class with its defaults."""


@pytest.mark.parametrize("objective", [*CATALOGUE.values(), DPO(beta=0.5), BradleyTerry(centering=0.01), *ONLINE])
@pytest.mark.parametrize("seed", range(3))
def test_the_catalogue_passes(objective, seed):
    excused = getattr(objective, "contract_exceptions", {})
    assert check_objective(objective, seed) == ["form", *(name for name in CHECKS if name not in excused)]


EXCEPTIONS = [(cls, check) for cls in CATALOGUE.values() for check in getattr(cls, "contract_exceptions", {})]


@pytest.mark.parametrize(("cls", "check"), EXCEPTIONS, ids=lambda x: getattr(x, "__name__", x))
def test_every_exception_of_the_catalogue_is_needed(cls, check, monkeypatch):
    monkeypatch.setattr(cls, "contract_exceptions", {})
    with pytest.raises(ContractError) as caught:
        [check_objective(cls, seed) for seed in range(20)]
    assert caught.value.check == check


def caught(cls, name, **methods):
    """The check that catches this class with other methods."""
    mutant = dataclass(frozen=True)(type(name, (cls,), methods))
    with pytest.raises(ContractError) as found:
        check_objective(mutant)
    return found.value.check


def held_to(check):
    """The catalogue without those that declare an exception; their own tests have their signs and sums."""
    return [cls for cls in CATALOGUE.values() if check not in getattr(cls, "contract_exceptions", {})]


@pytest.mark.parametrize("cls", held_to("prefers chosen"))
def test_a_flipped_sign_of_any_objective_is_caught(cls):
    def loss(self, batch, policy, targets):
        found = cls.loss(self, batch, policy, targets)
        return Loss(-found.total, found.metrics)

    assert caught(cls, "Flipped", loss=loss) == "prefers chosen"


@pytest.mark.parametrize("cls", [cls for cls in CATALOGUE.values() if cls().needs.reference])
def test_an_ignored_reference_is_caught_in_any_objective(cls):
    def targets(self, batch, old, reference):
        return cls.targets(self, batch, old, dataclasses.replace(reference, logps=-1.0 * reference.mask))

    assert caught(cls, "Ignorant", targets=targets) in ("uses reference", "starts at the reference")


@pytest.mark.parametrize("cls", CATALOGUE.values())
def test_padding_that_counts_is_caught_in_any_objective(cls):
    def loss(self, batch, policy, targets):
        found = cls.loss(self, batch, policy, targets)
        return Loss(found.total * batch.mask.shape[-1], found.metrics)

    assert caught(cls, "Padded", loss=loss) == "padding"


@pytest.mark.parametrize("cls", held_to("environment tokens"))
def test_an_environments_tokens_that_count_are_caught_in_any_objective(cls):
    def loss(self, batch, policy, targets):
        found = cls.loss(self, batch, policy, targets)
        return Loss(
            found.total * (1 + batch.lengths.sum(-1)), found.metrics
        )  # to the last token, over what lies between

    assert caught(cls, "Spread", loss=loss) == "environment tokens"


@pytest.mark.parametrize("cls", [cls for cls in held_to("starts at the reference") if cls().needs.reference])
def test_a_mean_for_a_sum_on_one_side_is_caught_in_any_objective(cls):
    def targets(self, batch, old, reference):
        tokens = reference.mask.sum(-1, keepdim=True).clamp(min=1)
        return cls.targets(self, batch, old, dataclasses.replace(reference, logps=reference.logps / tokens))

    assert caught(cls, "Mean", targets=targets) == "starts at the reference"


@pytest.mark.parametrize("cls", [cls for cls in CATALOGUE.values() if not cls().needs.whole_batch])
def test_a_statistic_of_the_batch_is_caught_in_any_objective(cls):
    def loss(self, batch, policy, targets):
        found = cls.loss(self, batch, policy, targets)
        return Loss(found.total - found.total.detach().mean() / 2, found.metrics)

    assert caught(cls, "Coupled", loss=loss) == "row slices"


@pytest.mark.parametrize("cls", [cls for cls in CATALOGUE.values() if cls().needs.whole_batch])
def test_a_coupled_objective_that_does_not_say_so_is_caught(cls):
    assert caught(cls, "Apart", needs=dataclasses.replace(cls().needs, whole_batch=False)) == "row slices"


def test_leaves_the_global_random_state_alone():
    state = torch.random.get_rng_state()
    check_objective(DPO)
    assert torch.equal(torch.random.get_rng_state(), state)


def margin(policy, targets):
    reward = 0.1 * (policy.sum() - targets.rows["reference"])
    return reward[:, 0] - reward[:, 1]


@dataclass(frozen=True)
class Flipped(DPO):
    def loss(self, batch, policy, targets):
        return Loss(-logsigmoid(-margin(policy, targets)))


@dataclass(frozen=True)
class FlippedOnline(RLOO):
    def loss(self, batch, policy, targets):
        loss = super().loss(batch, policy, targets)
        return Loss(-loss.total, loss.metrics)


@dataclass(frozen=True)
class ScoresIgnored(RLOO):
    def targets(self, batch, old, reference):
        return Targets({"advantages": torch.ones_like(batch.mask).double()})


@dataclass(frozen=True)
class PaddingCounted(SFT):
    def loss(self, batch, policy, targets):
        return Loss(-policy.logps.mean(-1)[:, 0])


@dataclass(frozen=True)
class MeanForSum(DPO):
    def loss(self, batch, policy, targets):
        reward = 0.1 * (policy.mean() - targets.rows["reference"])
        return Loss(-logsigmoid(reward[:, 0] - reward[:, 1]))


@dataclass(frozen=True)
class PaddingInTheGradient(SFT):
    def loss(self, batch, policy, targets):
        return Loss(-policy.logps.sum(-1)[:, 0])


@dataclass(frozen=True)
class TimePasses(ReinforcePlusPlus):
    """Discounts by places, over what an environment wrote as well."""

    def targets(self, batch, old, reference):
        found = super().targets(batch, old, reference)
        passed = 0.9 ** torch.arange(batch.mask.shape[-1])
        return Targets({**found.rows, "advantages": found.rows["advantages"] * passed}, found.metrics)


@dataclass(frozen=True)
class ReferenceIgnored(DPO):
    def loss(self, batch, policy, targets):
        return super().loss(batch, policy, Targets({"reference": torch.zeros_like(targets.rows["reference"])}))


@dataclass(frozen=True)
class BatchStatistic(DPO):
    def loss(self, batch, policy, targets):
        m = margin(policy, targets)
        return Loss(-logsigmoid(m - m.detach().mean()))


@dataclass(frozen=True)
class PlaceInBatch(DPO):
    def loss(self, batch, policy, targets):
        return Loss(-logsigmoid(margin(policy, targets)) * torch.arange(1, len(batch) + 1))


@dataclass(frozen=True)
class InPlace(DPO):
    def loss(self, batch, policy, targets):
        policy.logps.clamp_(min=-1)  # a second time changes nothing
        return super().loss(batch, policy, targets)


@dataclass(frozen=True)
class TargetsInPlace(DPO):
    def loss(self, batch, policy, targets):
        targets.rows["reference"].mul_(0.5)
        return super().loss(batch, policy, targets)


@dataclass(frozen=True)
class MetricWithGradient(DPO):
    def loss(self, batch, policy, targets):
        m = margin(policy, targets)
        return Loss(-logsigmoid(m), {"margin": m})


@dataclass(frozen=True)
class WrongShape(DPO):
    def loss(self, batch, policy, targets):
        return Loss(-logsigmoid(margin(policy, targets)).mean())


@dataclass(frozen=True)
class PerToken(DPO):
    def loss(self, batch, policy, targets):
        return Loss(-policy.logps[:, 0])


@dataclass(frozen=True)
class ScalarMetric(DPO):
    def loss(self, batch, policy, targets):
        m = margin(policy, targets)
        return Loss(-logsigmoid(m), {"margin": m.detach().mean()})


@dataclass(frozen=True)
class BatchInTargets(DPO):
    def targets(self, batch, old, reference):
        return Targets({"reference": reference.sum(), "mean": reference.sum().mean()})


@dataclass(frozen=True)
class BareTargets(DPO):
    def targets(self, batch, old, reference):
        return {"reference": reference.sum()}

    def loss(self, batch, policy, targets):
        return Loss(-logsigmoid((policy.sum() - targets["reference"])[:, 0]))


@dataclass(frozen=True)
class BareLoss(DPO):
    def loss(self, batch, policy, targets):
        return -logsigmoid(margin(policy, targets))


@dataclass(frozen=True)
class Random(DPO):
    def loss(self, batch, policy, targets):
        return Loss(-logsigmoid(margin(policy, targets) + random.random()))


@dataclass(frozen=True)
class Overflow(DPO):
    def loss(self, batch, policy, targets):
        return Loss((-margin(policy, targets)).exp())


@dataclass(frozen=True)
class OverflowInFp32(DPO):
    """10⁴ · β = 200: e²⁰⁰ is finite in float64 alone."""

    def loss(self, batch, policy, targets):
        return Loss((-0.1 * margin(policy, targets)).exp().log1p())


@dataclass(frozen=True)
class NoGradientThroughItem(DPO):
    def loss(self, batch, policy, targets):
        m = margin(policy, targets)
        weights = torch.tensor([1 + x.item() ** 2 for x in m])
        return Loss(-logsigmoid(m) * weights)


@dataclass(frozen=True)
class NoGradientThroughNoGrad(DPO):
    def loss(self, batch, policy, targets):
        m = margin(policy, targets)
        with torch.no_grad():
            weights = 1 + m**2
        return Loss(-logsigmoid(m) * weights)


@dataclass(frozen=True)
class NoGradient(DPO):
    def loss(self, batch, policy, targets):
        return Loss(-logsigmoid(margin(policy.detach(), targets)))


@dataclass
class NotFrozen:
    needs = DPO.needs
    targets, loss = DPO.targets, DPO.loss


@dataclass(frozen=True)
class NoNeeds:
    targets, loss = DPO.targets, DPO.loss


@dataclass(frozen=True)
class NoLoss:
    needs = DPO.needs
    targets = DPO.targets


@dataclass(frozen=True)
class NoDefault(DPO):
    alpha: float = dataclasses.field(kw_only=True)


@dataclass(frozen=True)
class UndeclaredReference(DPO):
    needs = Needs(completions=2, ordered=True)


@dataclass(frozen=True)
class UndeclaredScores(DPO):
    def loss(self, batch, policy, targets):
        return Loss(-logsigmoid(margin(policy, targets)) * batch.scores[:, 0])


@dataclass(frozen=True)
class WrongCompletions(DPO):
    def loss(self, batch, policy, targets):
        return Loss(policy.sum()[:, 2])


@dataclass(frozen=True)
class AbsentCounted:
    """The mean score of a prompt, over K."""

    needs = Needs(scores=True)

    def targets(self, batch, old, reference):
        return Targets({"advantage": batch.scores - batch.scores.mean(1, keepdim=True)})

    def loss(self, batch, policy, targets):
        return Loss(-(targets.rows["advantage"] * policy.sum()).sum(1))


@dataclass(frozen=True)
class StateOutsideFields(DPO):
    def loss(self, batch, policy, targets):
        object.__setattr__(self, "beta", self.beta * 0.9)
        return super().loss(batch, policy, targets)


@dataclass(frozen=True)
class Forgets(DPO):
    def adapted(self, metrics):
        return DPO(self.beta)


@dataclass(frozen=True)
class AdaptsAtRandom(DPO):
    def adapted(self, metrics):
        return dataclasses.replace(self, beta=random.random())


@dataclass(frozen=True)
class ByHelpfulness(RLOO):
    """Reads a column of the user's that has a number for each completion, and a score that feedback keeps apart."""

    needs = Needs(
        scores=True, rollouts=True, columns=("helpful",), axes={"helpful": "completion"}, named_scores=("safe",)
    )

    def targets(self, batch, old, reference):
        together = batch.scores + batch.columns["helpful"] + batch.named_scores["safe"]
        return Targets({"advantages": together.masked_fill(~batch.present, 0)})

    def loss(self, batch, policy, targets):
        return Loss(-(policy.sum() * targets.rows["advantages"]).sum(-1))


@dataclass(frozen=True)
class ColumnOfUnknownAxis(ByHelpfulness):
    needs = dataclasses.replace(ByHelpfulness.needs, axes={})

    def targets(self, batch, old, reference):
        return Targets({"helpful": batch.columns["helpful"][:, :1], **super().targets(batch, old, reference).rows})


@dataclass(frozen=True)
class NamedScoreOfAbsentCounts(ByHelpfulness):
    def targets(self, batch, old, reference):
        return Targets(
            {
                "advantages": batch.scores.masked_fill(~batch.present, 0)
                + batch.named_scores["safe"].mean(-1, keepdim=True)
            }
        )


MUTANTS = [
    (Flipped, "prefers chosen", "flipped sign"),
    (FlippedOnline, "prefers chosen", "flipped sign of the advantage"),
    (ScoresIgnored, "prefers chosen", "scores or preferences are not used"),
    (PaddingCounted, "padding", r"Outputs.sum\(\)"),
    (MeanForSum, "starts at the reference", "a mean for a sum"),
    (PaddingInTheGradient, "no gradient on padding", "without the mask"),
    (TimePasses, "environment tokens", "in a mean, a length, a place in T, the last token, or the next one"),
    (ReferenceIgnored, "uses reference", "ignores it"),
    (BatchStatistic, "row slices", "whole_batch=True"),
    (PlaceInBatch, "reordering", "place in the batch"),
    (InPlace, "inputs untouched", r"policy.logps changed.*in-place"),
    (TargetsInPlace, "inputs untouched", r"targets.reference changed"),
    (MetricWithGradient, "shapes", "margin without gradient.*detached"),
    (WrongShape, "shapes", r"total of shape \[4\].*leave that to the trainer"),
    (PerToken, "shapes", r"total of shape \[4\]; got \[4, 5\].*for each completion or token"),
    (ScalarMetric, "shapes", r"margin of shape \[4\]"),
    (BatchInTargets, "shapes", r"rows\['mean'\] with leading dimension 4"),
    (BareTargets, "shapes", "prefopt.Targets"),
    (BareLoss, "shapes", "prefopt.Loss"),
    (Random, "deterministic", "draws belong in `targets`"),
    (Overflow, "extremes", "logsigmoid"),
    (OverflowInFp32, "extremes", "logsigmoid"),
    (NoGradientThroughItem, "gradient", r"\.item\(\)"),
    (NoGradientThroughNoGrad, "gradient", "no_grad"),
    (NoGradient, "shapes", "detached"),
    (NotFrozen, "form", "frozen=True"),
    (NoNeeds, "form", "`needs`"),
    (NoLoss, "form", "`loss`"),
    (NoDefault, "constructs", "without a default"),
    (UndeclaredReference, "runs", r"do not declare: it runs with Needs\(reference=True\)"),
    (UndeclaredScores, "runs", r"test_checks.py:\d+, `.*scores.* it runs with Needs\(scores=True\)"),
    (WrongCompletions, "runs", r"test_checks.py:\d+, `.*\[:, 2\].* for another shape"),
    (AbsentCounted, "absent completions", "batch.present"),
    (StateOutsideFields, "inputs untouched", "`adapted`"),
    (ColumnOfUnknownAxis, "runs", "axes={'helpful': 'completion'}"),
    (NamedScoreOfAbsentCounts, "absent completions", "batch.present"),
    (Forgets, "adapts", "dataclasses.replace"),
    (AdaptsAtRandom, "adapts", "randomness"),
]


@pytest.mark.parametrize(("mutant", "check", "words"), MUTANTS, ids=[m[0].__name__ for m in MUTANTS])
def test_each_fault_is_caught_by_its_check(mutant, check, words):
    with pytest.raises(ContractError, match=words) as caught:
        check_objective(mutant)
    assert caught.value.check == check
    message = str(caught.value)
    assert mutant.__name__ in message
    for part in ("expected", "got", "Likely cause"):
        assert part in message


def test_every_check_has_a_mutant():
    assert {check for _, check, _ in MUTANTS} == {"constructs", "form", *CHECKS}


def test_a_declared_exception_is_honoured():
    @dataclass(frozen=True)
    class Excused(Flipped):
        contract_exceptions: ClassVar = {"prefers chosen": "it minimises what others maximise"}

    assert "prefers chosen" not in check_objective(Excused)
    assert "extremes" in check_objective(Excused)


@pytest.mark.parametrize(
    ("exceptions", "words"), [({"prefer chosen": "why"}, "prefers chosen"), ({"padding": ""}, "reason")]
)
def test_an_exception_must_name_a_check_and_a_reason(exceptions, words):
    @dataclass(frozen=True)
    class Careless(DPO):
        contract_exceptions = exceptions

    with pytest.raises(ContractError, match=words):
        check_objective(Careless)


def test_the_stop_gradient_of_a_weight_is_allowed():
    @dataclass(frozen=True)
    class Weighted(DPO):
        def loss(self, batch, policy, targets):
            m = margin(policy, targets)
            return Loss(-logsigmoid(m) * torch.detach(1 + m**2) * m.detach().sigmoid())

    check_objective(Weighted)


def test_draws_in_targets_are_allowed():
    @dataclass(frozen=True)
    class Noisy(DPO):
        """Adds noise to the margin, and to each token."""

        def targets(self, batch, old, reference):
            rows = super().targets(batch, old, reference).rows
            return Targets(
                {**rows, "noise": torch.rand(len(batch)), "tokens": torch.rand(batch.mask.shape, dtype=torch.float64)}
            )

        def loss(self, batch, policy, targets):
            noise = targets.rows["noise"] + (targets.rows["tokens"] * batch.mask).sum((1, 2))
            return Loss(-logsigmoid(margin(policy, targets) + 0.1 * noise))

    assert check_objective(Noisy) == ["form", *CHECKS]


def test_a_column_of_completions_with_a_name_of_the_users_is_allowed():
    assert check_objective(ByHelpfulness) == ["form", *CHECKS]


def test_coupled_and_adaptive_objectives_pass():
    @dataclass(frozen=True)
    class Coupled(DPO):
        delta: float = 0.0
        needs = dataclasses.replace(DPO.needs, whole_batch=True)

        def loss(self, batch, policy, targets):
            m = margin(policy, targets)
            return Loss(-logsigmoid(m - m.mean() / 2 - self.delta), {"margin": m.detach()})

        def adapted(self, metrics):
            return dataclasses.replace(self, delta=0.9 * self.delta + 0.1 * metrics["margin"])

    check_objective(Coupled)
