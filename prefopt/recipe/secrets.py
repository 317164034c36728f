"""Secrets have no place in a recipe, for every run writes its recipe into its folder."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from prefopt.support.errors import PrefoptError
from prefopt.support.given import Given

NAMES = re.compile(
    r"(?:KEY|TOKEN|SECRETS?|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|AUTHORIZATION)(?=$|\d|_(?!FILE|PATH|DIR|ENV|NAME))",
    re.IGNORECASE,
)
"""Variables of the environment that hold secrets; one that ends in _FILE, _PATH or _NAME says only where one is."""

FIELDS = re.compile(
    r"(?:\w+[-_])?(?:api[-_]?key|(?:access|auth|bearer|secret|api)[-_]?token|(?:access|secret|private|account)[-_]?key)"
    r"|(?:hf|hub|github|wandb)[-_]token|(?:proxy[-_])?authorization|(?:\w+[-_])?(?:password|passwd|passphrase)|client[-_]secret",
    re.IGNORECASE,
)
"""Fields whose text is a secret, whatever it looks like."""

FORMS = re.compile(
    r"(?<![A-Za-z0-9])(?:sk-[A-Za-z0-9_-]{16,}|hf_[A-Za-z0-9]{16,}|gsk_[A-Za-z0-9]{16,}|xai-[A-Za-z0-9]{16,}|r8_[A-Za-z0-9]{16,}"
    r"|nvapi-[A-Za-z0-9_-]{16,}|pplx-[A-Za-z0-9]{16,}|wandb_v1_[A-Za-z0-9_]{16,}|gh[pousr]_[A-Za-z0-9]{16,}"
    r"|github_pat_[A-Za-z0-9_]{16,}|glpat-[A-Za-z0-9_-]{16,}|(?:AKIA|ASIA)[0-9A-Z]{16}|AIza[0-9A-Za-z_-]{30,}"
    r"|xox[abprs]-[A-Za-z0-9-]{10,}|eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{5,})"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----|\bBearer [A-Za-z0-9._~+/=-]{16,}"
)
"""What keys of well-known services look like."""

ADDRESS = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s/@:]*:[^\s/@]+@", re.IGNORECASE)
"""An address with a password in it."""

WAY = (
    "a recipe is written into the folder of every run. Put the secret into an environment variable and name the variable: "
    "`key_env` for a judge's server; hubs and trackers read their own (HF_TOKEN, WANDB_API_KEY)"
)


def refuse_variable(name: str, value: str) -> None:
    """Refuse `${env:NAME}` where the variable holds a secret.

    Raises:
        PrefoptError: by its name or the form of its value; does not say what it is.
    """
    if (NAMES.search(name) and not _is_number(value)) or _is_secret(value):
        raise PrefoptError(
            f"${{env:{name}}} would put a secret into the recipe: {WAY}, without ${{…}}: key_env: {name}"
        )


def refuse_secrets(tree: Any, where: str) -> None:
    """Refuse a recipe in which a secret is written out.

    Args:
        tree: keys and values, at any depth.
        where: what messages call it.

    Raises:
        PrefoptError: says at which key; does not repeat the secret.
    """
    for key, text in _texts(tree):
        field = key.rpartition(".")[2]
        if _is_secret(text) or (FIELDS.fullmatch(field) and text.strip()):
            raise PrefoptError(f"{where}: `{key}` holds a secret ({text.strip()[:3]}…): {WAY}")


def _is_secret(text: str) -> bool:
    return bool(FORMS.search(text) or ADDRESS.search(text))


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"[-+]?\d{1,12}(?:\.\d*)?(?:e[-+]?\d+)?", text.strip(), re.IGNORECASE))


def _texts(tree: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text with the dotted key at which it stands; what Python gave in place of a name is none."""
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from _texts(value, f"{key}.{name}".lstrip("."))
    elif isinstance(tree, list | tuple) and not all(isinstance(row, Mapping) for row in tree if key == "source.data"):
        for place, value in enumerate(tree):
            yield from _texts(value, f"{key}.{place}".lstrip("."))
    elif isinstance(tree, str) and not isinstance(tree, Given):
        yield key, tree
