"""A feedback's opinions as a data set: completions, given or sampled, with scores, soft labels and where they come from."""

from typing import TYPE_CHECKING

from prefopt.support.lazy_names import on_first_use

if TYPE_CHECKING:
    from prefopt.runs.label.labelling import LabelResult, label
    from prefopt.runs.label.recipe import LabelRecipe, load_label_recipe

__getattr__ = on_first_use(
    __name__,
    dict.fromkeys(("LabelResult", "label"), f"{__name__}.labelling")
    | dict.fromkeys(("LabelRecipe", "load_label_recipe"), f"{__name__}.recipe"),
)
__all__ = ["LabelRecipe", "LabelResult", "label", "load_label_recipe"]
