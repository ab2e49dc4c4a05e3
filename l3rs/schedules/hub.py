"""Learned schedules on the Hugging Face Hub: names and arguments are those of huggingface_hub's `ModelHubMixin`.

A repository holds one schedule, as `model.safetensors`, beside its model card. huggingface_hub is imported when it is first needed.
Its own mixin is not inherited: it sets attributes on the instance, and a schedule is frozen; and it keeps the config in a file of its own.
So these are functions: a schedule is a value, which knows no network.
"""

from __future__ import annotations

import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from l3rs._version import __version__
from l3rs.schedules.card import body
from l3rs.schedules.learned import Learned, training_config
from l3rs.schedules.seal import CheckpointError
from l3rs.text import first_line

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelCard

FILE, CURVE, CARD = "model.safetensors", "curve.png", "README.md"
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*(@\S+)?", re.ASCII)


def save_pretrained(
    learned: Learned,
    save_directory: str | Path,
    *,
    repo_id: str | None = None,
    model_card_kwargs: dict[str, Any] | None = None,
) -> None:
    """Writes a folder that `load` reads: `model.safetensors`, a model card, and the meta-training curve if there is one.

    Paths of this machine are left out of how it was meta-trained. A model card that is there already is kept.

    Args:
        save_directory: is made if it is not there.
        repo_id: on the Hub, for the model card; None is the folder's name.
        model_card_kwargs: of `generate_model_card`.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    folder, repo_id = Path(save_directory), repo_id or Path(save_directory).name
    card, curve = generate_model_card(learned, repo_id=repo_id, **model_card_kwargs or {}), _curve(learned)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace(cast(Any, learned), training=_shareable(learned.training)).write(folder / FILE)
        if curve is not None and curve != folder / CURVE:
            shutil.copyfile(curve, folder / CURVE)
        if not (folder / CARD).exists():
            card.save(folder / CARD)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written ({error.strerror}); choose another folder") from None


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
    """Uploads what `save_pretrained` writes, as one commit; the repository and the branch are made if they are not there.

    Args:
        repo_id: `owner/name`, or `name` in your own account.
        private: whether a new repository is; None is public, unless your organization has another default.
        token: with the right to write; None is that of `HF_TOKEN` or `hf auth login`.
        branch: None is `main`.
        create_pr: whether to propose the commit as a pull request.
        allow_patterns, ignore_patterns: of files to upload, or not: `ignore_patterns="README.md"` keeps the model card that is there.
        delete_patterns: of files to remove from the repository.
        model_card_kwargs: of `generate_model_card`.

    Returns:
        The address of the commit.

    Raises:
        CheckpointError: the Hub cannot be reached, or refuses; the message says what to do.
    """
    generate_model_card(learned, repo_id=repo_id, **model_card_kwargs or {})  # what is wrong is known before a repository is made
    with _explained_upload(repo_id), tempfile.TemporaryDirectory() as folder:
        api = _api(token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if branch is not None and not branch.startswith("refs/pr/"):
            api.create_branch(repo_id, branch=branch, exist_ok=True)
        save_pretrained(learned, folder, repo_id=repo_id, model_card_kwargs=model_card_kwargs)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message,
            revision=branch,
            create_pr=create_pr,
            allow_patterns=allow_patterns,
            ignore_patterns=ignore_patterns,
            delete_patterns=delete_patterns,
        )
    return commit.commit_url


def generate_model_card(learned: Learned, *, repo_id: str, license: str = "apache-2.0", results: str = "") -> ModelCard:
    """The model card, from what the schedule knows of itself.

    Args:
        repo_id: on the Hub.
        license: its identifier on the Hub; by default that of l3rs and of what is shipped with it.
        results: Markdown, such as a table of what it does on which tasks; without it the card has no such section.
    """
    from huggingface_hub import ModelCard, ModelCardData

    tags = ["learned-optimizer", "fine-tuning", "arxiv:2408.09310"]
    front = ModelCardData(license=license, library_name="l3rs", tags=tags)
    text = body(learned, repo_id, CURVE if _curve(learned) else None, license, results)
    return ModelCard(f"---\n{front.to_yaml()}\n---\n\n{text}")


def _curve(learned: Learned) -> Path | None:
    """The picture of the meta-training curve beside the file: that of a run's folder, or of a shipped schedule."""
    beside = () if learned.source is None else (learned.source.with_suffix(".png"), learned.source.with_name(CURVE))
    return next((file for file in beside if file.is_file()), None)


def _shareable(training: dict[str, Any]) -> dict[str, Any]:
    """How it was meta-trained, without where on this machine: of files the names are left, of folders and addresses nothing."""
    if not isinstance(training.get("config"), dict):
        return training
    config = training_config(training)
    kept = {k: v for k, v in config.items() if k not in ("data", "cache", "ray_address")}
    kept |= {k: Path(kept[k]).name for k in ("split", "weights") if isinstance(kept.get(k), str)}
    if kept.get("start"):
        kept["start"] = [Path(file).name for file in kept["start"]]
    return {**training, "config": kept}


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
    """The file of a Hub id on this machine, downloaded if it is not in the cache, or is a newer one on the Hub.

    Where nothing answers, the cache is looked at alone, at once: huggingface_hub would go on trying for most of a minute. The arguments
    are those of `l3rs.load`.

    Raises:
        CheckpointError: it cannot be had; the message says why and what to do.
    """
    from huggingface_hub import constants

    repo_id, _, of_id = given.partition("@")
    if of_id and revision not in (None, of_id):
        raise CheckpointError(f"{given} names a revision, and revision is {revision!r}; give one of them")
    revision = of_id or revision
    forbidden = bool(local_files_only or constants.HF_HUB_OFFLINE)
    offline = forbidden or not reachable()
    if force_download and offline:
        why = "HF_HUB_OFFLINE or local_files_only forbids it" if forbidden else f"{constants.ENDPOINT} does not answer"
        raise CheckpointError(f"{given} cannot be downloaded again: {why}. Leave force_download out to take it from the cache")
    try:
        file = _api(token).hf_hub_download(
            repo_id, FILE, revision=revision, cache_dir=cache_dir, force_download=force_download, local_files_only=offline
        )
    except Exception as error:  # of huggingface_hub, and of its HTTP library, which is another one in each major version
        raise CheckpointError(_why_not(error, repo_id, revision, forbidden, cache_dir or constants.HF_HUB_CACHE)) from None
    return Path(file)


def cached() -> Iterator[tuple[str, Path]]:
    """Hub ids, sorted, and files of all repositories in the cache on this machine that have a `model.safetensors`, of l3rs or not."""
    from huggingface_hub import CacheNotFound, constants, scan_cache_dir

    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return
    for repository in sorted((r for r in repositories if r.repo_type == "model"), key=lambda r: r.repo_id):
        for revision in sorted(repository.revisions, key=lambda r: r.commit_hash):
            path = revision.snapshot_path / FILE
            for name in sorted(revision.refs) or [revision.commit_hash] if path.is_file() else ():
                yield repository.repo_id + ("" if name == "main" else f"@{name}"), path


def _why_not(error: Exception, repo_id: str, revision: str | None, forbidden: bool, cache: str | Path) -> str:
    from huggingface_hub import constants, errors

    at, what = constants.ENDPOINT, f"{repo_id}@{revision}" if revision else repo_id
    status = _status(error)
    if isinstance(error, errors.GatedRepoError):
        return f"{repo_id} on {at} is gated: ask for access on {at}/{repo_id}, then {LOG_IN}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no {repo_id}, neither as a path here nor on {at}: check the spelling; if it is private there, {LOG_IN}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo_id} on {at} has no revision {revision}: leave it out, or take a branch, tag or commit of {at}/{repo_id}/commits/main"
    if status in (401, 403):
        return f"{at} refuses {what} (HTTP {status}): {LOG_IN}, with a token that may read it"
    if status is not None and status != 404:
        return f"{at} cannot serve {what} now (HTTP {status}); try again later"
    if isinstance(error, errors.LocalEntryNotFoundError):
        missing = f"{what} is not in the cache {cache}"
        if forbidden:
            return f"{missing}, and HF_HUB_OFFLINE or local_files_only forbids to fetch it: load it once without"
        return f"{missing}, and {at} does not answer: check the network, or set HF_ENDPOINT to a mirror"
    if isinstance(error, errors.EntryNotFoundError):
        return f"{what} on {at} has no {FILE}, which is where save_pretrained puts a learned schedule; {at}/{repo_id} shows what it holds"
    if isinstance(error, errors.HFValidationError):
        return f"{what} is no Hub id: it is owner/name or owner/name@revision"
    return f"the download of {what} from {at} failed ({first_line(error)}); try again"


@contextmanager
def _explained_upload(repo_id: str) -> Iterator[None]:
    """Says what to do where an upload fails."""
    from huggingface_hub import constants, errors

    at = constants.ENDPOINT
    if constants.HF_HUB_OFFLINE:
        raise CheckpointError(f"{repo_id} cannot be uploaded while HF_HUB_OFFLINE is set: unset it, or use save_pretrained for a folder")
    if not reachable():
        raise CheckpointError(f"{at} does not answer: check the network, or HF_ENDPOINT; save_pretrained writes a folder to upload later")
    try:
        yield
    except CheckpointError:
        raise
    except errors.HFValidationError:
        raise CheckpointError(f"{repo_id} is no Hub id to upload to: it is owner/name, and the branch goes into branch=") from None
    except Exception as error:  # as in `download`
        if _status(error) in (401, 403, 404) or isinstance(error, errors.LocalTokenNotFoundError):
            why = f"{at} refuses to write {repo_id} ({first_line(error)})"
            raise CheckpointError(f"{why}: {LOG_IN}, with a token that may write to what you or your organization own") from None
        raise CheckpointError(f"the upload to {repo_id} on {at} failed ({first_line(error)}); try again") from None


def _status(error: BaseException | None) -> int | None:
    """The HTTP status that an error is about, or the one that it comes from."""
    while error is not None:
        if (response := getattr(error, "response", None)) is not None:
            return int(response.status_code)
        error = error.__cause__
    return None


def _api(token: str | bool | None) -> HfApi:
    from huggingface_hub import HfApi

    return HfApi(token=token, library_name="l3rs", library_version=__version__)


def reachable(seconds: float = 5.0) -> bool:
    """Whether something answers at the Hub's address, or at that of the proxy to it."""
    from huggingface_hub import constants

    at = urlsplit(constants.ENDPOINT)
    proxies = {} if proxy_bypass(at.hostname or "") else getproxies()
    if proxy := proxies.get(at.scheme) or proxies.get("all"):
        at = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    try:
        socket.create_connection((at.hostname, at.port or (443 if at.scheme == "https" else 80)), timeout=seconds).close()
    except OSError:
        return False
    return True


__all__ = ["CARD", "CURVE", "FILE", "cached", "download", "generate_model_card", "is_id", "push_to_hub", "reachable", "save_pretrained"]
