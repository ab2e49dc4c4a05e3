"""Learned schedules on the Hugging Face Hub, with the names and arguments of huggingface_hub's `ModelHubMixin`.

A repository holds one schedule, as `model.safetensors`, beside its model card. These are functions instead of a mixin, since a schedule is
a frozen value, which knows no network. huggingface_hub is imported when it is first needed.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from safetensors import SafetensorError

from l3rs._version import __version__
from l3rs.files import write_atomically
from l3rs.schedules.card import CURVE, curve_of, generate_model_card, shareable
from l3rs.schedules.connection import LOG_IN, endpoint, guarded_session, reachable, reason, usable, within
from l3rs.schedules.learned import Learned
from l3rs.schedules.seal import CheckpointError
from l3rs.text import first_line

if TYPE_CHECKING:
    from huggingface_hub import HfApi

FILE, CARD = "model.safetensors", "README.md"
SECONDS = 60.0  # of a download or an upload: a schedule is a small file
_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*(@\S+)?", re.ASCII)
_REVISION = re.compile(r'(?![/-])((^|/)(?!\.)[^\x00-\x20\x7f\\:*?"<>|~^/]+)+')  # a name that git allows: no part of it is empty, . or ..


def save_pretrained(
    learned: Learned,
    save_directory: str | Path,
    *,
    repo_id: str | None = None,
    model_card_kwargs: dict[str, Any] | None = None,
) -> None:
    """Writes a folder that `load` reads: `model.safetensors`, a model card, and the meta-training curve if there is one.

    It leaves out paths of this machine, and keeps a model card that is there already.

    Args:
        save_directory: made if needed.
        repo_id: on the Hub, for the model card; None is the folder's name.
        model_card_kwargs: of `generate_model_card`.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    folder, repo_id = Path(save_directory), repo_id or Path(save_directory).name
    card, curve = generate_model_card(learned, repo_id=repo_id, **model_card_kwargs or {}), curve_of(learned)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace(cast(Any, learned), training=shareable(learned.training)).write(folder / FILE)
        if curve is not None and curve != folder / CURVE:
            write_atomically(folder / CURVE, curve.read_bytes())
        if not (folder / CARD).exists():
            card.save(folder / CARD)
    except (OSError, SafetensorError) as error:
        why = first_line(error)
        raise CheckpointError(f"{folder} cannot be written ({why}); choose another folder") from None


def push_to_hub(
    learned: Learned,
    repo_id: str,
    *,
    commit_message: str = "Upload a learned schedule with l3rs",
    private: bool | None = None,
    token: str | None = None,
    branch: str | None = None,
    create_pr: bool | None = None,
    allow_patterns: list[str] | str | None = None,
    ignore_patterns: list[str] | str | None = None,
    delete_patterns: list[str] | str | None = None,
    model_card_kwargs: dict[str, Any] | None = None,
) -> str:
    """Uploads the folder of `save_pretrained` as one commit, and makes the repository and the branch if needed.

    Args:
        repo_id: `owner/name`, or `name` in your own account.
        private: makes a new repository private; None makes it public, unless your organization has another default.
        token: with the right to write; None takes the token of `HF_TOKEN` or `hf auth login`.
        branch: None is `main`.
        create_pr: proposes the commit as a pull request.
        allow_patterns, ignore_patterns: files to upload, or not: `ignore_patterns="README.md"` keeps the old model card.
        delete_patterns: files to remove from the repository.
        model_card_kwargs: of `generate_model_card`.

    Returns:
        The address of the commit.

    Raises:
        CheckpointError: the Hub cannot be reached, or refuses; the message says what to do.
    """
    generate_model_card(learned, repo_id=repo_id, **model_card_kwargs or {})  # errors come before a repository is made
    return push_folder(
        partial(_write, learned, model_card_kwargs), repo_id, commit_message=commit_message, private=private, token=token, branch=branch,
        create_pr=create_pr, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns, delete_patterns=delete_patterns,
    )  # fmt: skip


def _write(learned: Learned, model_card_kwargs: dict[str, Any] | None, folder: Path, repo_id: str) -> None:
    save_pretrained(learned, folder, repo_id=repo_id, model_card_kwargs=model_card_kwargs)


def push_folder(
    write: Callable[[Path, str], None],
    repo_id: str,
    *,
    commit_message: str,
    private: bool | None = None,
    token: str | None = None,
    branch: str | None = None,
    seconds: float = SECONDS,
    offline: str = "save_pretrained",
    **options: Any,
) -> str:
    """Uploads a folder as one commit; the arguments and errors are those of `push_to_hub`.

    Args:
        write: fills the folder, for the full id of the repository.
        seconds: time limit.
        offline: the method that writes such a folder without a network, for the message.
        options: of `HfApi.upload_folder`.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise CheckpointError(f"{repo_id} cannot be uploaded while HF_HUB_OFFLINE is set: unset it, or use {offline} for a folder")

    def upload() -> str:
        if not reachable():
            advice = f"check the network, or HF_ENDPOINT; {offline} writes a folder to upload later"
            raise CheckpointError(f"{endpoint()} does not answer: {advice}")
        api = _api(token)
        try:
            made = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if branch is not None and not branch.startswith("refs/pr/"):
                api.create_branch(made, branch=branch, exist_ok=True)
            with tempfile.TemporaryDirectory() as folder:
                write(Path(folder), made)
                done = api.upload_folder(repo_id=made, folder_path=folder, commit_message=commit_message, revision=branch, **options)
                return str(done.commit_url)
        except CheckpointError:
            raise
        except Exception as error:  # as in `download`
            raise CheckpointError(_not_uploaded(error, repo_id, api.token)) from None

    return within(seconds, f"the upload of {repo_id}", upload)


def is_id(given: str | Path) -> bool:
    """Whether it has the form of a Hub id, `owner/name` or `owner/name@revision`."""
    return isinstance(given, str) and not given.endswith(".safetensors") and _ID.fullmatch(given) is not None


def download(
    given: str,
    *,
    revision: str | None = None,
    force_download: bool = False,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """Gives the file of a Hub id on this machine, and downloads it if the cache lacks it or the Hub has a newer one.

    If nothing answers, it looks into the cache at once; huggingface_hub would try for most of a minute. For the arguments see `l3rs.load`.

    Raises:
        CheckpointError: there is no such file; the message says why, and names the cure.
    """
    from huggingface_hub import constants

    repo_id, _, of_id = given.partition("@")
    if of_id and revision not in (None, of_id):
        raise CheckpointError(f"{given} names a revision, and revision is {revision!r}; give one of them")
    revision = of_id or revision
    if revision is not None and not _REVISION.fullmatch(revision):  # the cache has a file of this name, in a folder of its own
        raise CheckpointError(f"the revision of {repo_id} must be a branch, a tag or a commit (got {revision!r})")
    forbidden = bool(local_files_only or constants.HF_HUB_OFFLINE)

    def fetch() -> str:
        offline = forbidden or not reachable()
        if force_download and offline:
            why = "HF_HUB_OFFLINE or local_files_only forbids it" if forbidden else f"{endpoint()} does not answer"
            raise CheckpointError(f"{given} cannot be downloaded again: {why}. Leave force_download out to take it from the cache")
        api = _api(False if offline else token)
        try:
            return api.hf_hub_download(
                repo_id, FILE, revision=revision, cache_dir=cache_dir, force_download=force_download, local_files_only=offline
            )
        except Exception as error:  # of huggingface_hub, and of its HTTP library, which is another one in each major version
            cache = cache_dir or constants.HF_HUB_CACHE
            raise CheckpointError(_not_downloaded(error, repo_id, revision, forbidden, cache, api.token)) from None

    return Path(within(SECONDS, f"the download of {given}", fetch))


def cached() -> Iterator[tuple[str, Path]]:
    """Yields the Hub id and file of every `model.safetensors` in the cache on this machine, sorted, of l3rs or not."""
    from huggingface_hub import CacheNotFound, constants, scan_cache_dir

    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return
    for repository in sorted((r for r in repositories if r.repo_type == "model"), key=lambda r: r.repo_id):
        for revision in sorted(repository.revisions, key=lambda r: r.commit_hash):
            path = revision.snapshot_path / FILE
            if path.is_file():
                for name in sorted(revision.refs) or [revision.commit_hash]:
                    yield repository.repo_id + ("" if name == "main" else f"@{name}"), path


def _not_downloaded(
    error: Exception, repo_id: str, revision: str | None, forbidden: bool, cache: str | Path, token: str | bool | None
) -> str:
    """Says why not, and what to do: the first line of the table that holds."""
    from huggingface_hub import errors

    at, what, status = endpoint(), f"{repo_id}@{revision}" if revision else repo_id, _status(error)
    missing = f"{what} is not in the cache {cache}"
    is_a = partial(isinstance, error)
    table = (
        (is_a(errors.GatedRepoError), f"{repo_id} on {at} is gated: ask for access on {at}/{repo_id}, then {LOG_IN}"),
        (
            is_a(errors.RepositoryNotFoundError),
            f"there is no {repo_id}, neither as a path here nor on {at}: check the spelling; if it is private there, {LOG_IN}",
        ),
        (
            is_a(errors.RevisionNotFoundError),
            f"{repo_id} on {at} has no revision {revision}: leave it out, or take a branch, tag or commit of {at}/{repo_id}/commits/main",
        ),
        (status in (401, 403), f"{at} refuses {what} (HTTP {status}): {LOG_IN}, with a token that may read it"),
        (status not in (None, 404), f"{at} cannot serve {what} now (HTTP {status}); try again later"),
        (
            is_a(errors.LocalEntryNotFoundError) and forbidden,
            f"{missing}, and HF_HUB_OFFLINE or local_files_only forbids to fetch it: load it once without",
        ),
        (is_a(errors.LocalEntryNotFoundError), f"{missing}, and {at} does not answer: check the network, or set HF_ENDPOINT to a mirror"),
        (
            is_a(errors.EntryNotFoundError),
            f"{what} on {at} has no {FILE}, which is where save_pretrained puts a learned schedule; {at}/{repo_id} shows what it holds",
        ),
        (is_a(errors.HFValidationError), f"a Hub id must be owner/name or owner/name@revision (got {what})"),
        (True, f"the download of {what} from {at} failed ({reason(error, token)}); try again"),
    )
    return next(message for case, message in table if case)


def _not_uploaded(error: Exception, repo_id: str, token: str | bool | None) -> str:
    from huggingface_hub import errors

    at, why = endpoint(), reason(error, token)
    if isinstance(error, errors.HFValidationError):
        return f"a Hub id to upload to must be owner/name, and the branch goes into branch= (got {repo_id})"
    if _status(error) in (401, 403, 404) or isinstance(error, errors.LocalTokenNotFoundError):
        return f"{at} refuses to write {repo_id} ({why}): {LOG_IN}, with a token that may write to what you or your organization own"
    return f"the upload to {repo_id} on {at} failed ({why}); try again"


def _status(error: BaseException | None) -> int | None:
    """Finds the HTTP status of an error or of its causes."""
    while error is not None:
        if (response := getattr(error, "response", None)) is not None:
            return int(response.status_code)
        error = error.__cause__
    return None


def _api(token: str | bool | None) -> HfApi:
    from huggingface_hub import HfApi

    guarded_session()
    return HfApi(token=usable(token), library_name="l3rs", library_version=__version__)
