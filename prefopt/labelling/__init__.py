"""A feedback's opinions as a data set: completions, given or sampled, with scores, soft labels and where they come from."""

from prefopt.labelling.recipe import LabelRecipe, load_label_recipe
from prefopt.labelling.run import LabelResult, label

__all__ = ["LabelRecipe", "LabelResult", "label", "load_label_recipe"]
