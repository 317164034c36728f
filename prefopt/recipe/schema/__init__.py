"""The schema of recipes: every section and field of the YAML file that describes a run."""

from prefopt.recipe.schema.evaluate import Evaluate
from prefopt.recipe.schema.feedback import FEEDBACKS, TRANSFORMS, Feedback, FeedbackOrName, Metric, Transform
from prefopt.recipe.schema.models import Adapter, AnyAdapter, Critic, Method, Policy, Quantization, Reference
from prefopt.recipe.schema.recipe import Recipe, Seeds, Term
from prefopt.recipe.schema.sampling import SAMPLERS, Acting, Environment, Samples, Sampling, most_tokens
from prefopt.recipe.schema.source import DATA_FILES, DIALECTS, WRITERS, Data, Embeddings, Rollouts, Source
from prefopt.recipe.schema.threads import PLAIN_THREADS, THREADS, Threads, ThreadsOrMost
from prefopt.recipe.schema.track import Comet, MLflow, TensorBoard, Track, Trackio, Wandb
from prefopt.recipe.schema.train import KeepBest, Optimizer, Precision, Schedule, Shard, Train

__all__ = [
    "DATA_FILES",
    "DIALECTS",
    "FEEDBACKS",
    "PLAIN_THREADS",
    "SAMPLERS",
    "THREADS",
    "TRANSFORMS",
    "WRITERS",
    "Acting",
    "Adapter",
    "AnyAdapter",
    "Comet",
    "Critic",
    "Data",
    "Embeddings",
    "Environment",
    "Evaluate",
    "Feedback",
    "FeedbackOrName",
    "KeepBest",
    "MLflow",
    "Method",
    "Metric",
    "Optimizer",
    "Policy",
    "Precision",
    "Quantization",
    "Recipe",
    "Reference",
    "Rollouts",
    "Samples",
    "Sampling",
    "Schedule",
    "Seeds",
    "Shard",
    "Source",
    "TensorBoard",
    "Term",
    "Threads",
    "ThreadsOrMost",
    "Track",
    "Trackio",
    "Train",
    "Transform",
    "Wandb",
    "most_tokens",
]
