"""A finished model onto the Hugging Face Hub: one commit, private unless said otherwise, nothing replaced unasked."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vit_finetune.common.errors import RequestError, WorkError
from vit_finetune.common.files import write_text
from vit_finetune.shipping.card import model_card
from vit_finetune.shipping.finished import open_finished
from vit_finetune.shipping.story import CARD_NAME, export_model

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_HUBS_OWN = {".gitattributes"}


@dataclass(frozen=True)
class Pushed:
    """What a push did, or would do.

    Attributes:
        repository: owner/name.
        files: each file and its size in bytes.
        replaced: files of the repository that these replace.
        private: whether a new repository is private.
        url: of the commit; None where nothing was sent.
    """

    repository: str
    files: dict[str, int]
    replaced: tuple[str, ...]
    private: bool
    url: str | None

    def lines(self) -> list[str]:
        """Return it in a few lines for people."""
        what = ", ".join(f"{name} ({size:,} bytes)" for name, size in self.files.items())
        replaced = [f"replaces {', '.join(self.replaced)}"] if self.replaced else []
        whose = "private" if self.private else "public"
        end = f"pushed   {self.url}" if self.url else f"dry run: nothing was sent to {self.repository} ({whose})"
        return [what, *replaced, end]


def push_model(
    run_or_model: str | Path,
    repository: str,
    *,
    to: str = "timm",
    private: bool = True,
    overwrite: bool = False,
    dry_run: bool = False,
    images: Iterable[str | Path] | None = None,
) -> Pushed:
    """Export a finished model and send it to the hub, with its card and proof.

    `HF_ENDPOINT`, `HF_HOME` and tokens are huggingface_hub's business and work as everywhere.

    Args:
        run_or_model: what `export_model` takes.
        repository: owner/name; made where there is none.
        to: what `export_model` takes; timm's folder is opened by timm and transformers from the hub.
        private: of a repository that is made; one that is there stays as it is.
        overwrite: replace files that the repository has.
        dry_run: export, prove, ask the hub what it has, and send nothing.
        images: to prove the export on; see `export_model`.

    Raises:
        RequestError: no such model, no permission, or the repository has files that would be replaced.
        WorkError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi

    if not _NAME.fullmatch(repository):
        raise RequestError(f"{repository!r} is not a repository name; write owner/name")
    with tempfile.TemporaryDirectory() as place:
        done = export_model(run_or_model, Path(place) / "model", to=to, images=images)
        card = model_card(open_finished(run_or_model), target=to, proof=done.proof, repository=repository)
        write_text(done.folder / CARD_NAME, card)
        files = {path.name: path.stat().st_size for path in sorted(done.folder.iterdir())}
        api = HfApi()
        try:
            there = _files_of(api, repository)
            replaced = tuple(name for name in files if name in (there or ()))
            left = sorted(set(there or ()) - set(files) - _HUBS_OWN)
            if not overwrite:
                _refuse_files(repository, replaced, left)
            if dry_run:
                return Pushed(repository, files, replaced, private, None)
            if there is None:
                api.create_repo(repository, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repository, folder_path=done.folder, commit_message="Model, card and proof by vit_finetune"
            )
        except Exception as error:
            if not _is_of_the_hub(error):
                raise
            raise _refusal(error, repository) from error
        return Pushed(repository, files, replaced, private, str(commit.commit_url))


def _refuse_files(repository: str, replaced: tuple[str, ...], left: list[str]) -> None:
    """Refuse a repository that holds files, whether or not they would be replaced."""
    if replaced or left:
        raise RequestError(
            f"{repository} holds files already ({', '.join([*replaced, *left][:6])}); choose another name, or "
            f"pass overwrite=True (--overwrite): it replaces {', '.join(replaced) or 'none'} and keeps the rest"
        )


def _is_of_the_hub(error: Exception) -> bool:
    """Say whether the hub or the way to it failed; its client's own errors of the way are not OSErrors."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    library = type(error).__module__.partition(".")[0]
    return isinstance(error, (HfHubHTTPError, OfflineModeIsEnabled, OSError)) or library.startswith(
        ("httpx", "httpcore")
    )


def _refusal(error: Exception, repository: str) -> Exception:
    """Return what a person is told where the hub refuses or is not there."""
    if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
        return RequestError(
            f"the hub does not let you write to {repository}: run `hf auth login` with a token that may, or choose an "
            "owner that you are"
        )
    return WorkError(f"{repository} could not be reached or written: {(str(error) or repr(error)).splitlines()[0]}")


def _files_of(api: HfApi, repository: str) -> list[str] | None:
    """Return the names of a repository's files; None where there is no such repository."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        names: list[str] = api.list_repo_files(repository)
    except RepositoryNotFoundError:
        return None
    return names
