"""Exported weights as GGUF, by llama.cpp's own converter, which knows what each architecture needs."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from prefopt.support.errors import PrefoptError
from prefopt.support.files import replacing

TYPES = ("f32", "bf16", "f16", "q8_0")
"""What the converter writes by itself; smaller ones are made from these by llama-quantize."""

SCRIPT = "convert_hf_to_gguf.py"

HOW = (
    "clone https://github.com/ggml-org/llama.cpp, install what its requirements/requirements-convert_hf_to_gguf.txt lists into an "
    "environment of its own (its versions are not prefopt's), and set LLAMA_CPP to the clone and LLAMA_CPP_PYTHON to that "
    "environment's python"
)


def find_converter() -> Path:
    """llama.cpp's converter: in the folder that LLAMA_CPP names, or else on the PATH.

    Raises:
        PrefoptError: it is in neither; says how to get it.
    """
    if named := os.environ.get("LLAMA_CPP"):
        script = Path(named).expanduser() / SCRIPT
        if not script.is_file():
            raise PrefoptError(f"LLAMA_CPP is {named}, and there is no {SCRIPT} in it; {HOW}")
        return script
    if on_path := shutil.which(SCRIPT):
        return Path(on_path)
    raise PrefoptError(f"GGUF is written by llama.cpp's {SCRIPT}, which is not here (LLAMA_CPP, PATH): {HOW}")


def write_gguf(converter: Path, weights: Path, kind: str) -> Path:
    """Convert a folder of whole weights; the file is put beside them, whole or not at all.

    Args:
        converter: from `find_converter`.
        weights: in the Hugging Face format.
        kind: one of `TYPES`.

    Raises:
        PrefoptError: the converter refuses; has its last line.
    """
    file = weights / f"model-{kind}.gguf"
    python = os.environ.get("LLAMA_CPP_PYTHON") or sys.executable
    with replacing(file) as staging:
        command = [python, str(converter), str(weights), "--outfile", str(staging), "--outtype", kind]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode or not staging.is_file():
            said = [line.strip() for line in done.stderr.splitlines() if line.strip()] or [f"status {done.returncode}"]
            command[command.index(str(staging))] = str(file)
            raise PrefoptError(
                f"{weights} holds the whole weights, and the converter has made no GGUF of them: {said[-1]}. By hand it says more: "
                + shlex.join(command)
            )
    return file
