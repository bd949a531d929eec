"""Files of the Hugging Face Hub: what a repository has under a name, and a whole model folder brought here.

huggingface_hub names a file, its version and its digest, and knows the user's token; the bytes come by `download`.
"""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from xcit.connections import in_time, unreached
from xcit.errors import XCiTError
from xcit.weights.download import DownloadError, DownloadProgress, download
from xcit.writing import make_folder, whole_file

_LOG = logging.getLogger("xcit")

PREFIX = "hf-hub:"
"""Begins the name of a model repository of the Hub, as timm spells it."""

PATIENCE_SECONDS = 2.0
"""For the first connection; each that can't be had halves it, so that no network is noticed within twice this time."""

OFFLINE_SWITCHES = ("XCIT_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")

# A model folder, and an adapter's: what must be there, one of the weights, and what may be there.
_FORMS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("config.json", ("model.safetensors", "pytorch_model.bin"), ("manifest.json",)),
    ("adapter_config.json", ("adapter_model.safetensors",), ()),
)


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """Where a file's bytes are, of which commit, its SHA-256 if it is a large file, and the headers to ask with."""

    url: str
    commit: str | None
    sha256: str | None
    headers: Mapping[str, str]


def offline_switch() -> str:
    """The environment variable that forbids to ask the network, "" if none does."""
    switches = (key for key in OFFLINE_SWITCHES if os.environ.get(key, "").lower() in ("1", "true", "yes", "on"))
    return next(switches, "")


def find_on_hub(
    repository: str, filename: str, *, revision: str | None = None, patience: float = PATIENCE_SECONDS
) -> HubFile:
    """Asks the Hub for a file, at a revision or the main one; nothing of it is downloaded.

    Raises:
        DownloadError: if there is none, or the Hub can't be reached.
    """
    from huggingface_hub import get_hf_file_metadata, get_token, hf_hub_url
    from huggingface_hub.constants import HF_HUB_DISABLE_IMPLICIT_TOKEN

    endpoint = hub_endpoint()
    try:
        with _quiet_hub():
            url = hf_hub_url(repository, filename, revision=revision, endpoint=endpoint)
            metadata = in_time(lambda: get_hf_file_metadata(url, timeout=patience), patience)
            commit = metadata.commit_hash
            url = hf_hub_url(repository, filename, revision=commit, endpoint=endpoint)
            token = None if HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    except Exception as error:  # its own and those of its HTTP library, which differs between versions
        status = getattr(getattr(error, "response", None), "status_code", None)
        reason = f"HTTP {status} ({endpoint})" if status else unreached(urlsplit(endpoint).hostname, error)
        raise DownloadError(reason, status=status) from error
    return HubFile(
        url=url,
        commit=commit,
        sha256=as_digest(metadata.etag),
        headers={"Authorization": f"Bearer {token}"} if token else {},
    )


def hub_endpoint() -> str:
    """The URL of the Hub: `HF_ENDPOINT`, as it is now, else the client's own."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def as_digest(etag: str | None) -> str | None:
    """The ETag when it is a SHA-256: the Hub's ETag of a large file (a small one has its git hash)."""
    return etag if etag and re.fullmatch("[0-9a-f]{64}", etag) else None


def bring_repository(name: str, directory: Path, progress: DownloadProgress | None = None) -> Path:
    """The folder of a model's repository: configuration and weights, of one commit, verified.

    Asks the Hub which commit is meant. Where it can't be asked, the copy that was brought last is used, or that in the
    cache which the Hub's clients share.

    Args:
        name: "USER/REPO" or "USER/REPO@REVISION", with or without "hf-hub:" before it.
        directory: where copies are kept.
        progress: called while a file arrives.

    Raises:
        XCiTError: if there is no such repository, it holds no model, it can't be had, or a file is wrong.
    """
    repository, _, revision = name.removeprefix(PREFIX).partition("@")
    _check_name(name, repository)
    place = directory / repository.replace("/", "--")
    reference = place / "refs" / (revision or "main").replace("/", "--")
    switch = offline_switch()
    try:
        if switch:
            raise DownloadError(f"not asked, {switch} is set")
        return _bring(repository, revision or None, place, reference, progress)
    except DownloadError as error:
        copy = None if error.status else _copy_on_disk(repository, revision or "main", place, reference)
        if copy is None:
            raise XCiTError(f"{PREFIX}{repository}{'@' * bool(revision)}{revision}: {_explained(error)}") from None
        if not switch:
            _LOG.warning("%s%s: %s; the copy on this machine is used", PREFIX, repository, error)
        return copy


def _check_name(name: str, repository: str) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.errors import HFValidationError

    try:
        hf_hub_url(repository, "config.json")
    except HFValidationError as error:
        raise XCiTError(
            f"{name} is no repository of the Hub: write hf-hub:USER/REPO, or hf-hub:USER/REPO@REVISION ({error})"
        ) from None


def _bring(
    repository: str, revision: str | None, place: Path, reference: Path, progress: DownloadProgress | None
) -> Path:
    required, weights, optional, first = _form_of(repository, revision)
    if first.commit is None:  # without it a copy would be old and nobody would know
        raise DownloadError(f"{first.url}: the answer does not say which commit it is of", status=200)
    folder = place / first.commit
    download(first.url, folder / required, sha256=first.sha256, headers=first.headers)
    for names, is_needed in ((weights, True), (optional, False)):
        for number, filename in enumerate(names, start=1):
            try:
                found = find_on_hub(repository, filename, revision=first.commit)
            except DownloadError as error:
                if error.status == 404 and (number < len(names) or not is_needed):
                    continue
                raise
            download(
                found.url,
                folder / filename,
                sha256=found.sha256,
                headers=found.headers,
                progress=progress and (lambda _, done, total: progress(f"{PREFIX}{repository}", done, total)),
            )
            break
    make_folder(reference.parent)
    with whole_file(reference) as part:
        part.write_text(first.commit)
    return folder


def _form_of(repository: str, revision: str | None) -> tuple[str, tuple[str, ...], tuple[str, ...], HubFile]:
    """Which form of folder a repository has, and its first file."""
    for number, (required, weights, optional) in enumerate(_FORMS, start=1):
        try:
            return required, weights, optional, find_on_hub(repository, required, revision=revision)
        except DownloadError as error:
            if error.status != 404 or number == len(_FORMS):
                raise
    raise AssertionError("there is a form")


def _copy_on_disk(repository: str, revision: str, place: Path, reference: Path) -> Path | None:
    with suppress(OSError):
        folder = place / reference.read_text()
        if folder.is_dir():
            return folder
    from huggingface_hub import try_to_load_from_cache

    for required, weights, _ in _FORMS:
        cached = try_to_load_from_cache(repository, required, revision=revision)
        if isinstance(cached, str) and any((Path(cached).parent / name).is_file() for name in weights):
            return Path(cached).parent
    return None


def _explained(error: DownloadError) -> str:
    if error.status in (401, 403, 404):
        return (
            f"{error}: no such repository or revision, no config.json with weights in it, or a private one, for which "
            "HF_TOKEN is needed"
        )
    return f"{error}; give a folder that was downloaded on a connected machine in its place"


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Holds back the client's advice to log in, which says nothing about a public file."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
