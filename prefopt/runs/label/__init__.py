"""A feedback's opinions as a data set: completions, given or sampled, with scores, soft labels and where they come from."""

from prefopt.runs.label.labelling import LabelResult, label
from prefopt.runs.label.recipe import LabelRecipe, load_label_recipe

__all__ = ["LabelRecipe", "LabelResult", "label", "load_label_recipe"]
