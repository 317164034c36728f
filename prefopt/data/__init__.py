"""The data path: rows of any format → `Example` → splits → `Tokenised` → `Batch`. Rows are kept on disk (`DiskRows`).

May import support, types and recipe.
"""

from prefopt.data.collating import collate
from prefopt.data.disk_rows import DiskRows
from prefopt.data.example import Example, prompts
from prefopt.data.formats import FORMATS, parse
from prefopt.data.loading import load_examples, load_rows
from prefopt.data.previewing import preview
from prefopt.data.splits import Split, split
from prefopt.data.tokenised import Report, Tokenised
from prefopt.data.tokenising import tokenise, tokenise_to_disk

__all__ = [
    "FORMATS",
    "DiskRows",
    "Example",
    "Report",
    "Split",
    "Tokenised",
    "collate",
    "load_examples",
    "load_rows",
    "parse",
    "preview",
    "prompts",
    "split",
    "tokenise",
    "tokenise_to_disk",
]
