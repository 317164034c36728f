"""The largest micro-batch of a run, by the lengths of its rows and the order in which they will come."""

from collections.abc import Sequence
from typing import NamedTuple

from prefopt.data import Tokenised
from prefopt.data.ordering import Shuffled
from prefopt.policy.parallel import cut
from prefopt.recipe import most_tokens
from prefopt.runs.planning import Plan
from prefopt.training.devices import launched_processes, tokens_at_once

MOST_BATCHES = 1000
"""Of a longer run, this many are looked at."""


class MicroBatch(NamedTuple):
    """What goes through the model at a time.

    Attributes:
        tokens: of prompts and completions, each prompt once; where weights are sharded once with each of its completions, padded.
        predicted: of completions.
        alone: an optimiser step is of this one alone.
        longest: tokens of the longest prompt with one completion.
        attended: of completions, each with its prompt anew: what attention by segments copies; 0 where rows are padded.
    """

    tokens: int
    predicted: int
    alone: bool
    longest: int
    attended: int = 0


def most(planned: Plan, completions: int, prompt: int, completion: int) -> MicroBatch:
    """By the limits of a recipe alone.

    Args:
        planned: the run.
        completions: K, of each prompt.
        prompt: tokens of the longest.
        completion: likewise.
    """
    train = planned.recipe.train
    share = -(-(train.minibatch_size or train.batch_size) // launched_processes())
    rows = min(train.micro_batch_size, share)
    if (tokens := tokens_at_once(train)) is not None:
        rows = min(rows, max(1, tokens // (prompt + completions * completion)))
    apart = rows * completions * (prompt + completion)
    padded = _is_sharded(planned)
    tokens = apart if padded else rows * (prompt + completions * completion)
    attended = 0 if padded else apart
    return MicroBatch(tokens, rows * completions * completion, share <= rows, prompt + completion, attended)


def _is_sharded(planned: Plan) -> bool:
    return planned.recipe.train.shard is not None and launched_processes() > 1


def largest(planned: Plan, rows: Sequence[Tokenised], completions: int) -> MicroBatch:
    """Of recorded data: over the batches that the run will take. Of rollouts: of the longest prompts, written to their ends.

    Args:
        planned: the run.
        rows: to train on, with the completions that batches take.
        completions: K, of each prompt; those beyond the row's own are of the longest.
    """
    settings, train = planned.recipe, planned.recipe.train
    sizes = [(len(row.prompt_ids), [len(ids) for ids in row.completion_ids]) for row in rows]  # read once, from disk
    prompts = [prompt for prompt, _ in sizes]
    if settings.source.rollouts is not None:
        rollouts = settings.source.rollouts
        return most(planned, completions, max(prompts), most_tokens(rollouts.sampling, rollouts.environment)[0])
    longest = max(length for _, of_row in sizes for length in of_row)
    written = [sum(of_row) + max(completions - len(of_row), 0) * longest for _, of_row in sizes]
    lengths = [prompt + completion for prompt, completion in zip(prompts, written, strict=True)]
    widest = [prompt + max(of_row, default=0) for prompt, of_row in sizes]
    apart = _is_sharded(planned)
    order, found = Shuffled(len(rows), settings.seed_of("order")), (0, 0, 0)
    for _ in range(min(planned.steps, MOST_BATCHES)):
        batch = sorted(order.take(train.batch_size), key=lengths.__getitem__, reverse=True)
        for part in cut(batch[:: launched_processes()], lengths, train.micro_batch_size, tokens_at_once(train)):
            tokens = sum(lengths[row] for row in part)
            if apart:
                tokens = len(part) * completions * max(widest[row] for row in part)
            attended = sum(completions * prompts[row] + written[row] for row in part)
            found = max(found, (tokens, sum(written[row] for row in part), attended))
    at_most = most(planned, completions, max(prompts), longest)
    return at_most._replace(tokens=found[0], predicted=found[1], attended=min(found[2], at_most.attended))
