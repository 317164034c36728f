"""Group Relative Policy Optimization."""

from dataclasses import dataclass

from prefopt.objectives.online.advantage import Credit, check_credit
from prefopt.objectives.online.correction import Tis
from prefopt.objectives.online.group import credited_targets
from prefopt.objectives.online.kl import Estimator, check_kl, kl_in_loss
from prefopt.objectives.online.surrogate import clipped_losses, needs_per, token_means, token_ratio
from prefopt.support.domains import NonNegative, Positive
from prefopt.types import Batch, Loss, Outputs, Targets


@dataclass(frozen=True)
class GRPO:
    """Group Relative Policy Optimization: PPO's clip, each completion against its prompt's others, no critic.

    L = mean over completions of mean_t [max(−A ρ_t, −A clip(ρ_t, 1 − ε, 1 + ε)) + β kl_t],
    A_i = (score_i − mean_j score_j) / (std_j score_j + e),
    kl_t = π_ref/π − 1 − log(π_ref/π) at the token (k3), or another estimate

    A is [B, K], over the completions that are present, the same at all tokens of one; the rest is [B, K, T]. std is the unbiased
    one, as in TRL and verl. A group whose scores are all equal has A = 0 and only feels the KL, and so does a completion alone.
    Dividing by std weighs prompts of rare success more, and k3 in the loss has the gradient of KL(π_ref‖π) (`online.kl.KL`): the
    optimum is not that of reward − β KL.

    Source: Shao et al., arXiv 2402.03300v3 (DeepSeekMath), eq. 3 and 4, with outcome supervision; β = 0.04 and groups of 64 are
    theirs. ε is not given there; 0.2 is PPO's and TRL's. e is not in the paper: 0.0001 is TRL's, verl has 0.000001. TRL's β is 0 by
    default, and its default loss is DAPO's.

    With `credit="reward_to_go"` a token of an episode has A_it = (Σ_{s≥t} r_s − mean_j score_j) / (std_j score_j + e), where r_s is
    what the turn that ends at s earned, and a score of the whole goes to the last token: what came before a token is not its
    doing, and the baseline stays that of whole episodes. Rewards of turns that are normalised by themselves are 0 on average, be it
    all together (that paper's process supervision, §4.1.3) or one turn number at a time over the episodes that got so far (as Zeng
    et al., arXiv 2505.11821, do for two turns): a further turn then seems to cost nothing, and taking it can pay.

    Attributes:
        beta: β ≥ 0, the weight of the KL.
        epsilon: ε, how far a ratio may move.
        e: what is added to the standard deviation.
        estimator: of the KL, which is in the loss: "k1", "k2", "k3" or "exact".
        tis: corrects for the sampler: the largest weight of a token, or a `Correction`; None does not.
        credit: what a token is credited with: "outcome", or "reward_to_go" of the turns.
    """

    beta: NonNegative = 0.04
    epsilon: Positive = 0.2
    e: Positive = 1e-4
    estimator: Estimator = "k3"
    tis: Tis | None = None
    credit: Credit = "outcome"
    kl = property(kl_in_loss)
    needs = needs_per("completion", contrast=True)
    targets = credited_targets

    def __post_init__(self) -> None:
        check_kl(self)
        check_credit(self)

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, K, T]; the total is [B]."""
        ratio = token_ratio(policy, targets)
        losses, metrics = clipped_losses(self.kl, policy, targets, ratio, self.epsilon, self.epsilon)
        return Loss(token_means(losses, batch.mask), metrics)
