"""Finds files on the Hugging Face Hub, and downloads the folder of a model.

huggingface_hub provides the URL, version and digest of a file, and the user's token; `download` downloads the bytes.
"""

import logging
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from xcit.connections import in_time, unreached
from xcit.errors import XCiTError
from xcit.terminal import logging_only
from xcit.weights.download import DownloadError, DownloadProgress, download
from xcit.writing import make_folder, whole_file

_LOG = logging.getLogger("xcit")

PREFIX = "hf-hub:"
"""The prefix of the name of a model repository on the Hub, as in timm."""

PATIENCE_SECONDS = 2.0
"""Seconds to wait for the first connection.

Each failed connection halves the time for the next one, so that a missing network is noticed within twice this time.
"""

OFFLINE_SWITCHES = ("XCIT_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")

# The files of a model folder and of an adapter's folder: the required one, the weights (one of them), optional ones.
_FORMS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("config.json", ("model.safetensors", "pytorch_model.bin"), ("manifest.json",)),
    ("adapter_config.json", ("adapter_model.safetensors",), ()),
)


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """A file on the Hub: its URL, its commit, its SHA-256 if it is large, and the headers of a request for it."""

    url: str
    commit: str | None
    sha256: str | None
    headers: Mapping[str, str]


def offline_switch() -> str:
    """Returns the name of the environment variable that forbids network access, or "" if access is allowed."""
    switches = (key for key in OFFLINE_SWITCHES if os.environ.get(key, "").lower() in ("1", "true", "yes", "on"))
    return next(switches, "")


def find_on_hub(
    repository: str, filename: str, *, revision: str | None = None, patience: float = PATIENCE_SECONDS
) -> HubFile:
    """Asks the Hub where a file is, at a revision or on the main branch, and downloads nothing.

    Raises:
        DownloadError: if there is no such file, or the Hub can't be reached.
    """
    from huggingface_hub import get_hf_file_metadata, get_token, hf_hub_url
    from huggingface_hub.constants import HF_HUB_DISABLE_IMPLICIT_TOKEN

    endpoint = hub_endpoint()
    try:
        # A public file does not need the login that the client recommends.
        with logging_only("huggingface_hub", logging.ERROR):
            url = hf_hub_url(repository, filename, revision=revision, endpoint=endpoint)
            metadata = in_time(lambda: get_hf_file_metadata(url, timeout=patience), patience)
            commit = metadata.commit_hash
            url = hf_hub_url(repository, filename, revision=commit, endpoint=endpoint)
            token = None if HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    except Exception as error:  # errors of the client or its HTTP library, which differ between versions
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
    """Returns the URL of the Hub: the current value of `HF_ENDPOINT`, or else the client's default."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def as_digest(etag: str | None) -> str | None:
    """Returns the ETag if it is a SHA-256, else None: on the Hub, large files have a SHA-256, small ones a git hash."""
    return etag if etag and re.fullmatch("[0-9a-f]{64}", etag) else None


def bring_repository(name: str, directory: Path, progress: DownloadProgress | None = None) -> Path:
    """Downloads a model's repository, and returns its folder: configuration and weights of one commit, verified.

    It asks the Hub for the commit of the revision. If the Hub can't be reached, it uses the copy of the last download,
    or the one in the Hub's own cache.

    Args:
        name: "USER/REPO" or "USER/REPO@REVISION", with or without "hf-hub:" before it.
        directory: folder for the copies.
        progress: called while a file arrives.

    Raises:
        XCiTError: if there is no such repository, it contains no model, it can't be downloaded, or a file is wrong.
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
    if first.commit is None:  # without the commit, an outdated copy can't be recognised
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
    """Returns which form of folder a repository has, and its required file."""
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
