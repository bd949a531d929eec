"""Finds files on the Hugging Face Hub, and downloads the files of a model's repository.

The package huggingface_hub returns the URL, version and digest of a file, and the user's token. `download` downloads
the file.
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
"""The prefix of the name of a repository on the Hub, as in timm: "hf-hub:USER/REPO"."""

PATIENCE_SECONDS = 2.0
"""Time limit in seconds for the first connection.

After each failed connection, the limit for the next connection is halved. So a missing network is noticed within twice
this time.
"""

OFFLINE_SWITCHES = ("XCIT_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")

# The files in the repository of a model (first entry) or an adapter (second entry). An entry contains the required
# file, the possible names of the weights file (the first name that exists is used), and the optional files.
_FORMS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("config.json", ("model.safetensors", "pytorch_model.bin"), ("manifest.json",)),
    ("adapter_config.json", ("adapter_model.safetensors",), ()),
)


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """A file on the Hub.

    Attributes:
        url: URL of the file.
        commit: the commit of the file; None if the Hub does not state it.
        sha256: SHA-256 of the file in hex; None if the Hub does not state it, as for small files.
        headers: headers for a request of the file, with the user's token if there is one.
    """

    url: str
    commit: str | None
    sha256: str | None
    headers: Mapping[str, str]


def offline_switch() -> str:
    """Returns the name of the environment variable that is set and forbids network access; "" if there is none."""
    switches = (key for key in OFFLINE_SWITCHES if os.environ.get(key, "").lower() in ("1", "true", "yes", "on"))
    return next(switches, "")


def find_on_hub(
    repository: str, filename: str, *, revision: str | None = None, patience: float = PATIENCE_SECONDS
) -> HubFile:
    """Requests the URL, commit and digest of a file from the Hub, without downloading the file.

    Args:
        repository: the repository, "USER/REPO".
        filename: path of the file in the repository.
        revision: branch, tag or commit; None means the main branch.
        patience: time limit in seconds.

    Raises:
        DownloadError: if the file does not exist, or the Hub can't be reached.
    """
    from huggingface_hub import get_hf_file_metadata, get_token, hf_hub_url
    from huggingface_hub.constants import HF_HUB_DISABLE_IMPLICIT_TOKEN

    endpoint = hub_endpoint()
    try:
        # The client's advice to log in is hidden, because public files need no login.
        with logging_only("huggingface_hub", logging.ERROR):
            url = hf_hub_url(repository, filename, revision=revision, endpoint=endpoint)
            metadata = in_time(lambda: get_hf_file_metadata(url, timeout=patience), patience)
            commit = metadata.commit_hash
            url = hf_hub_url(repository, filename, revision=commit, endpoint=endpoint)
            token = None if HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    except Exception as error:  # the exception classes differ between versions of the client and its HTTP library
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
    """Returns the URL of the Hub: the value of the environment variable `HF_ENDPOINT`, or the client's default."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def as_digest(etag: str | None) -> str | None:
    """Returns the ETag if it is a SHA-256, else None. On the Hub, the ETag of a small file is a git hash."""
    return etag if etag and re.fullmatch("[0-9a-f]{64}", etag) else None


def bring_repository(name: str, directory: Path, progress: DownloadProgress | None = None) -> Path:
    """Downloads the config and weights in a model's repository, and returns the folder with these files.

    All files are from the same commit, and their digests are verified. If the Hub can't be reached, the folder of an
    earlier download or of the Hub's own cache is returned.

    Args:
        name: "USER/REPO" or "USER/REPO@REVISION", with or without the prefix "hf-hub:".
        directory: folder for downloads.
        progress: called repeatedly during a download.

    Raises:
        XCiTError: if the repository does not exist, contains no model or can't be downloaded, or a file is wrong.
    """
    repository, _, revision = name.removeprefix(PREFIX).partition("@")
    _check_name(name, repository)
    place = directory / repository.replace("/", "--")
    reference = place / "refs" / (revision or "main").replace("/", "--")
    switch = offline_switch()
    try:
        if switch:
            raise DownloadError(f"not requested, because {switch} is set")
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
    if first.commit is None:  # the commit is needed to recognise an outdated copy
        raise DownloadError(f"{first.url}: the answer does not state the commit", status=200)
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
    """Returns the entry of `_FORMS` that fits a repository, and its required file on the Hub."""
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
            f"{error}: the repository or revision does not exist, has no config.json or no weights next to it, or is "
            "private (if it is private, set HF_TOKEN)"
        )
    return f"{error}; instead, give a folder that was downloaded on a machine with a network"
