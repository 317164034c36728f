"""`python -m prefopt.testbeds.pocket [MODEL FOLDER]`: the marks of the shipped LM, or of another policy."""

import sys
from pathlib import Path

from .language import FOLDER
from .marks import marks

if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    print(f"{folder}, 256 held-out prompts, 64 samples each")
    for mark in marks(folder=folder):
        print(mark, flush=True)
