"""Where needs meet data: what objectives ask of a batch, less what a run adds to it, is what its data must bring.

what a batch holds                    who brings it, with recorded data    with rollouts
------------------------------------  -----------------------------------  ---------------------------------
completions                           the data, and `source.writers`       the policy, and `source.writers`
scores, preference probabilities      the data                             `feedback`
`cost`                                the data                             `cost`
`origin`, `trained`                   `source.writers`                     the source
`ended`, `temperature`, …             the data                             the source
`embeddings`                          `source.embeddings`                  `source.embeddings`
other columns                         the data                             the data, of the prompt

`match` answers for a whole source, before any row is read; `training_rows` and `batch_rows` hold rows against its answer.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from prefopt import recipe
from prefopt.data import DiskRows, Example, Tokenised, prompts
from prefopt.data.selecting import EMBED, select_checked, select_completions
from prefopt.sources.writers import SUPPLIED, without_writers
from prefopt.support.downloads import rows_awaited
from prefopt.support.errors import PrefoptError
from prefopt.types import Needs

EMBEDDINGS = "embeddings"
"""The column that `source.embeddings` adds."""

BY_ROLLOUTS = SUPPLIED | {"cost", "gold", "ended", "temperature", "sampler_logps"}
"""Columns that rollouts put into a batch themselves."""

BEST = Needs(completions=1, ordered=True)
"""What rollouts need of the data where the data's own completions are written among the policy's: the best one of each prompt."""


def match(needs: Needs, source: recipe.Source, name: str, scored: bool = False, costed: bool = False) -> Needs:
    """What the data of a source must bring themselves.

    Args:
        needs: of an objective, or of several that share the source.
        source: the section that says what is added to the data.
        name: of the objective or objectives, for messages.
        scored: the recipe has a `feedback` or an environment, which scores rollouts.
        costed: it has a `cost`.

    Raises:
        PrefoptError: the run adds too little or too much for what is needed; says what to write or leave out.
    """
    if source.rollouts is None:
        return _with_embeddings(without_writers(needs, source.writers, name), source.embeddings, name)
    _check_rollouts(needs, source, source.rollouts, name, scored, costed)
    others = replace(needs, columns=tuple(column for column in needs.columns if column not in BY_ROLLOUTS))
    return replace(BEST, columns=_with_embeddings(others, source.embeddings, name).columns)


def training_rows(rows: Sequence[Example], needs: Needs, source: recipe.Source) -> Iterator[Example]:
    """The rows of a source as batches will have them, or the prompts that rollouts begin with; refused before a model is loaded.

    Args:
        rows: of the data.
        needs: what the data must bring, from `match`.
        source: where they are from.

    Raises:
        PrefoptError: the rows lack what is needed.
    """
    if not rows and rows_awaited():  # by a dry run: there is nothing to refuse yet
        return
    if source.rollouts is None or "dataset" in source.writers:
        yield from select_completions(rows, needs, source.ties)
        return
    for row in prompts(rows):
        if missing := set(needs.columns) - set(row.columns) - {"row"}:
            names = ", ".join(map(repr, sorted(missing)))
            hint = f" ({EMBED})" if EMBEDDINGS in missing else ""
            raise PrefoptError(f"{row.where}: the prompt has no column {names}, which the objective needs{hint}")
        yield row


def batch_rows(
    rows: DiskRows[Tokenised], needs: Needs, source: recipe.Source, counts: Counter[str]
) -> DiskRows[Tokenised]:
    """Tokenised rows as batches take them: with the completions that are needed; of rollouts, the prompts as they are.

    Args:
        rows: that `training_rows` has let pass.
        needs: what the data must bring, from `match`.
        source: where they are from.
        counts: where it is counted how often something was dropped.
    """
    if source.rollouts is not None:
        return rows
    return DiskRows.of(select_checked(rows, needs, source.ties, counts))


def batch_columns(needs: Needs, source: recipe.Source) -> tuple[str, ...]:
    """The columns of rows that go into batches: what the data bring, and embeddings where the source adds them."""
    return needs.columns if source.embeddings is None else (*needs.columns, EMBEDDINGS)


def _with_embeddings(needs: Needs, embeddings: recipe.Embeddings | None, name: str) -> Needs:
    """What is left to bring where the source embeds prompts."""
    if embeddings is None:
        return needs
    if EMBEDDINGS not in needs.columns:
        raise PrefoptError(f"source.embeddings is given, and {name} does not compare prompts: leave it out")
    if needs.rewards and embeddings.model is None:
        raise PrefoptError(
            f"{name} trains a scorer, which embeds no prompts: name a sentence encoder in source.embeddings.model"
        )
    return replace(needs, columns=tuple(column for column in needs.columns if column != EMBEDDINGS))


def _check_rollouts(
    needs: Needs, source: recipe.Source, rollouts: recipe.Rollouts, name: str, scored: bool, costed: bool
) -> None:
    """Refuses what rollouts could not put into a batch."""
    if needs.rewards:
        raise PrefoptError(f"{name} trains a scorer, which writes nothing: leave out source.rollouts")
    total = rollouts.completions + len(source.writers)
    judged = needs.scores or needs.preference or bool(needs.named_scores) or (needs.ordered and total > 1)
    if judged and not scored:
        raise PrefoptError(
            f"{name} learns from scores of what the policy writes; say where they come from, for example "
            "`feedback: {name: RewardModel, model: runs/…}` or `feedback: file.py:function`"
        )
    if "cost" in needs.columns and not costed:
        raise PrefoptError(f"{name} keeps a cost low; say where it comes from: `cost: file.py:function`")
    if SUPPLIED & set(needs.columns) and not source.writers:
        raise PrefoptError(
            f"{name} compares with completions that are not the policy's own; list who writes them in `source.writers`: "
            f"{', '.join(recipe.WRITERS['rollouts'])}"
        )
    if source.writers and needs.rollouts and not SUPPLIED & set(needs.columns):
        raise PrefoptError(
            f"source.writers is {list(source.writers)}, and {name} does not look at who wrote a completion: it would learn from "
            "theirs as if they were the policy's; leave it out"
        )
    _refuse_alike(needs, source, rollouts, name)
    if rollouts.refill and total < 2:
        raise PrefoptError("source.rollouts.refill compares the completions of a prompt: draw at least 2 of each")
    wants = needs.completions
    if wants is not None and (total < wants or (total > wants and not needs.ordered)):
        raise PrefoptError(
            f"{name} takes {wants} completions of each prompt, and source.rollouts.completions is "
            f"{rollouts.completions}{f' with {len(source.writers)} more by source.writers' * bool(source.writers)}"
        )


def _refuse_alike(needs: Needs, source: recipe.Source, rollouts: recipe.Rollouts, name: str) -> None:
    """Refuses rollouts among which there is nothing to tell apart, or whose log-probs mean something else."""
    others = sum(writer != "mismatched" for writer in source.writers)
    sampling, total = rollouts.sampling, rollouts.completions + others
    if total < 2 and (needs.contrast or needs.signs):
        raise PrefoptError(
            f"{name} learns from what is better and worse among the completions of a prompt, and "
            f"source.rollouts.completions is {rollouts.completions}: draw at least 2"
        )
    greedy = "temperature: 0" if sampling.temperature == 0 else "top_k: 1" if sampling.top_k == 1 else ""
    compared = needs.contrast or needs.signs or (needs.ordered and total > 1)
    if greedy and ((compared and not others) or "greedy" in source.writers):
        raise PrefoptError(
            f"source.rollouts.sampling has {greedy}, so that all completions of a prompt are the same and {name} learns "
            "nothing from them: sample, for example with temperature: 1"
        )
    if "sampler_logps" in needs.columns and (sampling.top_p < 1 or sampling.top_k > 0):
        raise PrefoptError(
            f"{name} weighs tokens by the policy's and the sampler's log-probs (`tis`), and with source.rollouts.sampling "
            f"top_p {sampling.top_p:g} and top_k {sampling.top_k} the sampler's are of the tokens that are left, so that the "
            "weight is their share and no difference of policies: write top_p: 1 and top_k: 0, or leave out tis"
        )
