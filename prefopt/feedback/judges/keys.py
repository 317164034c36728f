"""API keys: the variables that hold them, and the addresses to which they may go."""

import os
import re
from urllib.parse import urlsplit

from prefopt.support.errors import PrefoptError

LOOPBACK = ("localhost", "127.0.0.1", "::1")

PROVIDERS = {
    "OPENAI": r"(?:[\w-]+\.)*openai\.com",
    "AZURE_OPENAI": r".*\.azure\.com",
    "ANTHROPIC": r".*\.anthropic\.com",
    "(?:HF|HUGGINGFACE|HUGGING_FACE_HUB)": r"(?:.*\.)?(?:huggingface\.co|hf\.space|huggingface\.cloud)",
    "MISTRAL": r".*\.mistral\.ai",
    "GROQ": r".*\.groq\.com",
    "TOGETHER": r".*\.together\.(?:xyz|ai)",
    "OPENROUTER": r"(?:.*\.)?openrouter\.ai",
    "DEEPSEEK": r".*\.deepseek\.com",
    "FIREWORKS": r".*\.fireworks\.ai",
    "(?:GEMINI|GOOGLE)": r".*\.googleapis\.com",
    "XAI": r".*\.x\.ai",
    "COHERE": r".*\.cohere\.(?:ai|com)",
    "NVIDIA": r".*\.nvidia\.com",
    "AWS": r".*\.amazonaws\.com",
    "(?:GITHUB|GH)": r".*\.github(?:\.com|usercontent\.com|\.ai)",
    "WANDB": r".*\.wandb\.ai",
}
"""Whose variables begin with these words, and the hosts to which the keys in them may go."""


AUTO = "auto"
"""As `key_env`: the provider's own variable at the provider's address, and none anywhere else."""


def read_key(key_env: str | None) -> str | None:
    """The key in the environment, if there is one.

    Raises:
        PrefoptError: it cannot be sent; does not say what it is.
    """
    key = os.environ.get(key_env, "").strip() if key_env else ""
    if not (key.isascii() and key.isprintable()):
        raise PrefoptError(f"what ${key_env} holds is no key: it has characters that no key has, a line break perhaps")
    return key or None


def is_openai(host: str) -> bool:
    """Whether a host is OpenAI's."""
    return bool(re.fullmatch(PROVIDERS["OPENAI"], host))


def variable_for(address: str) -> str | None:
    """The variable whose key an address gets without being named: OpenAI's own its own, and any other none."""
    return "OPENAI_API_KEY" if is_openai(urlsplit(address).hostname or "") else None


def check_key(key_env: str | None, address: str) -> None:
    """Refuse to send a key to somebody else than its provider, or so that all can read it.

    Args:
        key_env: the variable.
        address: of the server.

    Raises:
        PrefoptError: says which variable and what to do; does not say what it holds.
    """
    key, where = read_key(key_env), urlsplit(address)
    host = where.hostname or ""
    if not key or host in LOOPBACK:
        return
    if where.scheme == "http":
        raise PrefoptError(
            f"the key in ${key_env} would go to {address} for all to read: use https, or `key_env: null`, which sends none"
        )
    for owner, hosts in PROVIDERS.items():
        if re.match(f"{owner}_", str(key_env), re.IGNORECASE) and not re.fullmatch(hosts, host):
            raise PrefoptError(
                f"the key in ${key_env} is not sent to {address}, which is another's address. If that is meant, put it into a "
                "variable of its own (export JUDGE_KEY=…) and name that: `key_env: JUDGE_KEY`; `key_env: null` sends none"
            )
