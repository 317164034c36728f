"""CPU threads of a run, a labelling or a measurement."""

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from prefopt.recipe.section import Section

Count = Annotated[int, Field(gt=0)]

THREADS = (
    "CPU threads, at most: each phase takes what measures fastest; a mapping of decoding, scoring and training fixes them; null: "
    "as many as the process may use"
)

"""What `threads` says where the work is measured first."""

PLAIN_THREADS = (
    "CPU threads; a mapping of decoding, scoring and training: of each; null: as many as the process may use"
)
"""What it says where all of the work is forward passes."""


class Threads(Section):
    """CPU threads of each phase; null leaves it open."""

    decoding: Count | None = Field(None, description="where completions are drawn")
    scoring: Count | None = Field(
        None, description="of passes without gradient: reference, evaluation, reward models, judges"
    )
    training: Count | None = Field(None, description="of forward and backward passes and the optimiser")

    @property
    def fixed(self) -> dict[str, int]:
        """The phases that have a number."""
        return {name: number for name, number in self if number is not None}


def _kind(value: Any) -> str:
    return "(phases)" if isinstance(value, dict | Threads) else "int"


ThreadsOrMost = Annotated[Annotated[Count, Tag("int")] | Annotated[Threads, Tag("(phases)")], Discriminator(_kind)]
"""The most threads of every phase, or those of each; a message names the field without either."""
