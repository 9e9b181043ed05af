"""Files of a model repository, from the network or from huggingface_hub's cache.

`HF_HUB_OFFLINE`, `HF_HOME`, `HF_ENDPOINT` and tokens are huggingface_hub's business and work as everywhere. All files
come from one commit: the one that the first file was found at.
"""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from vit_finetune.common.errors import RequestError, WorkError
from vit_finetune.weights.folder import CONFIG_NAME, OPEN_CLIP_CONFIG_NAME, PREPROCESSOR_NAME, WEIGHT_NAMES

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[^@\s]+)?")


def fetch_folder(repository: str, *, filename: str | None = None) -> Path:
    """Bring the weights and configuration files of a repository to this machine.

    Args:
        repository: "owner/name", or "owner/name@revision" (a branch, tag or commit).
        filename: the weight file, where it has another name than the usual ones.

    Returns:
        The folder in the cache that holds them; with `filename`, the weight file in it.

    Raises:
        RequestError: the repository, the revision or its weights don't exist, or access is refused.
        WorkError: neither the network nor the cache has the file.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise RequestError(f"{repository!r} is not a repository name; write owner/name or owner/name@revision")
    name, _, revision = repository.partition("@")
    if filename is not None:
        found = _fetch(name, filename, revision or None, required=True)
        if found is None:
            raise RequestError(f"the repository {name} has no file {filename}")
        return found
    config = _fetch(name, CONFIG_NAME, revision or None)
    commit = config.parent.name if config else revision or None
    for candidate in WEIGHT_NAMES:
        weights = _fetch(name, candidate, commit)
        if weights is None:
            continue
        if weights.suffix == ".json":
            shards = json.loads(weights.read_text(encoding="utf-8")).get("weight_map", {})
            for shard in sorted(set(shards.values())):
                if _fetch(name, shard, commit, required=True) is None:
                    raise RequestError(f"the repository {name} lacks {shard}, which its {weights.name} lists")
        is_open_clip = weights.name.startswith("open_clip_")
        _fetch(name, OPEN_CLIP_CONFIG_NAME if is_open_clip else PREPROCESSOR_NAME, commit)
        return weights.parent
    raise RequestError(f"the repository {name} holds no weights; looked for {', '.join(WEIGHT_NAMES)}")


def _fetch(name: str, filename: str, revision: str | None, *, required: bool = False) -> Path | None:
    """Return a file of the repository, or None where the repository has no such file.

    Without network a file that isn't cached counts as absent where the repository's weights are, unless it is required.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        # Where the hub's name isn't known, huggingface_hub would try for half a minute and log every try.
        return Path(hf_hub_download(name, filename, revision=revision, local_files_only=not _hub_is_known()))
    except LocalEntryNotFoundError as error:
        if not required and _weights_are_cached(name, revision):
            return None
        reason = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else "the hub can't be reached"
        needed = f"{WEIGHT_NAMES[0]} (with {CONFIG_NAME})" if filename == CONFIG_NAME else filename
        raise WorkError(
            f"{needed} of {name} (revision {revision or 'main'}) is needed, {reason}, and it is not in the cache "
            f"{constants.HF_HUB_CACHE}. Bring it: run `hf download {name}` on a machine with network and copy "
            f"models--{name.replace('/', '--')} from its cache into this one, or give a downloaded folder as the source"
        ) from error
    except GatedRepoError as error:
        raise RequestError(
            f"the repository {name} asks for permission: accept its terms, then `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise RequestError(f"there is no repository {name}, or it is private and `hf auth login` is needed") from error
    except RevisionNotFoundError as error:
        raise RequestError(f"the repository {name} has no revision {revision!r}") from error
    except EntryNotFoundError:
        return None
    except HFValidationError as error:
        raise RequestError(f"{name!r} is not a repository name: {error}") from error
    except (HfHubHTTPError, OSError) as error:
        raise WorkError(f"{filename} of {name} could not be fetched: {str(error).splitlines()[0]}") from error


def _hub_is_known() -> bool:
    """Say whether the hub's host can be looked up, or a proxy would do that for us."""
    from huggingface_hub import constants

    if constants.is_offline_mode() or getproxies():
        return True  # huggingface_hub knows what to do
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
    except OSError:
        return False
    return True


def _weights_are_cached(name: str, revision: str | None) -> bool:
    """Say whether the cache holds weights of a repository's revision."""
    from huggingface_hub import constants

    root = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    reference = root / "refs" / (revision or "main")
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
    return commit is not None and any((root / "snapshots" / commit / weights).is_file() for weights in WEIGHT_NAMES)
