"""A trained model goes to a model hub: with its card, into a repository that is new or empty."""

import importlib
import importlib.metadata
import os
from pathlib import Path
from typing import Any, NoReturn

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from prefopt.runs.card import NAME, write_card
from prefopt.runs.folder import RunFolder
from prefopt.support.errors import PrefoptError

_REQUIRED = importlib.metadata.requires("huggingface_hub") or []
HTTP: Any = importlib.import_module("httpx2" if any(one.startswith("httpx2") for one in _REQUIRED) else "httpx")
"""The HTTP library that this version of huggingface_hub is built on, whose errors it lets through."""

WEIGHTS = ("config.json", "adapter_config.json")
"""One of these is in every folder that holds a model."""

OWN = (".gitattributes",)
"""What a repository that holds nothing has."""


def push(run_or_folder: str | Path, repo: str, private: bool = False) -> str:
    """Upload a run's policy, or a folder that `export` wrote, to the hub at HF_ENDPOINT (huggingface.co unless set).

    Args:
        run_or_folder: a finished run, whose `policy/` is meant; or a folder with a model.
        repo: OWNER/NAME; created where it is not there.
        private: nobody else sees it, if it is created.

    Returns:
        Its address.

    Raises:
        PrefoptError: no model there, no token, a repository that holds something, or a hub that refuses or does not answer.
    """
    folder = _model_folder(Path(run_or_folder).expanduser())
    _check_name(repo)
    token = get_token()
    if token is None:
        raise PrefoptError(
            "nobody is logged in to the hub, so nothing was uploaded: `hf auth login`, or set HF_TOKEN to a token that may write "
            "(huggingface.co/settings/tokens)"
        )
    hub = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token)
    try:
        address = str(hub.create_repo(repo, private=private, exist_ok=True))
        if held := [file for file in hub.list_repo_files(repo) if file not in OWN]:
            raise PrefoptError(
                f"{address} holds {len(held)} files already, {held[0]} the first, and nothing is overwritten: name another "
                "repository"
            )
        hub.upload_folder(repo_id=repo, folder_path=folder, commit_message="Model trained with prefopt")
    except OfflineModeIsEnabled as error:
        raise PrefoptError("HF_HUB_OFFLINE is set, so nothing can be uploaded: unset it") from error
    except HfHubHTTPError as error:
        _refused(repo, error)
    except HTTP.HTTPError as error:
        raise PrefoptError(f"{hub.endpoint} does not answer ({error}): is it up, and is HF_ENDPOINT right?") from error
    return address


def _model_folder(place: Path) -> Path:
    """The folder whose files are uploaded; that of a run has its card written.

    Raises:
        PrefoptError: the run is not over, or there is no model.
    """
    run = RunFolder(place)
    if run.begun:
        if not run.finished:
            raise PrefoptError(
                f"{place} is not over, and its card would have no results: `prefopt run {place} --resume`"
            )
        write_card(run, run.policy)
        place = run.policy
    if not any((place / name).is_file() for name in WEIGHTS):
        raise PrefoptError(f"{place} holds no model: name a run folder, or a folder that `prefopt export` wrote")
    if not (place / NAME).is_file():
        raise PrefoptError(
            f"{place} has no {NAME}, the card that says what the model is: write one, or push the run itself"
        )
    return place


def _check_name(repo: str) -> None:
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise PrefoptError(
            f"{repo!r} is no name of a repository: write OWNER/NAME ({str(error).splitlines()[0]})"
        ) from error
    if repo.count("/") != 1:
        raise PrefoptError(f"{repo!r} does not say whose repository it is: write OWNER/NAME")


def _refused(repo: str, error: HfHubHTTPError) -> NoReturn:
    status = error.response.status_code
    said = error.server_message or str(error).splitlines()[0]
    if status in (401, 403):
        raise PrefoptError(
            f"the token may not write to {repo} (status {status}: {said}): take one that may, from huggingface.co/settings/tokens"
        ) from error
    raise PrefoptError(f"the hub refused {repo} (status {status}: {said})") from error
