"""Three methods to share a model. They have the names that libraries of the Hugging Face Hub use."""

import os
from importlib import import_module
from pathlib import Path
from typing import Any, Self


def _sharing() -> Any:
    # `xcit.models` must not depend on `xcit.zoo`, so `xcit.zoo` is imported only when a method is called. The models
    # have these methods because users expect a model to have them.
    return import_module("xcit.zoo.sharing")


class Shareable:
    """Base class of models that can be saved and loaded, in a folder or on the Hugging Face Hub."""

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        licence: str = "",
        report: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Writes the model to a folder: config.json, model.safetensors, README.md (a model card) and manifest.json.

        If the model is a classifier and timm has its architecture, the files are in timm's format, which timm and
        transformers can load (see docs/sharing.md).

        Args:
            folder: a new or empty folder.
            licence: licence of the weights, such as "apache-2.0". It is written to the model card and the manifest.
            report: path of a report.json from `xcit test`. Its figures are written to the model card.
            overwrite: whether to replace these four files if the folder contains them.

        Returns:
            The folder.

        Raises:
            XCiTError: if the folder is not empty and `overwrite` is false, if the folder can't be written, or if the
                model is fused.
        """
        path: Path = _sharing().save_pretrained(self, folder, licence=licence, report=report, overwrite=overwrite)
        return path

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], *, revision: str | None = None) -> Self:
        """Loads a model from a folder, a weights file or a repository of the Hub ("USER/REPO"), in evaluation mode.

        Args:
            name: a path or a repository. The files may be from `save_pretrained`, timm or transformers.
            revision: branch, tag or commit of a repository; None means the main branch.

        Raises:
            XCiTError: if the model can't be downloaded or read, or is not an instance of this class.
        """
        model: Self = _sharing().from_pretrained(cls, name, revision=revision)
        return model

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        branch: str | None = None,
        commit_message: str = "Add model",
        licence: str = "",
        report: str | os.PathLike[str] | None = None,
    ) -> str:
        """Uploads the model to a repository of the Hub. The files are those that `save_pretrained` writes.

        The repository is created if it does not exist.

        Args:
            repo_id: "USER/REPO".
            private: whether a new repository is private; None means the account's default.
            token: access token of the Hub; None means the token that is stored on this machine.
            branch: the branch to commit to; None means the main branch.
            commit_message: message of the commit.
            licence: see `save_pretrained`.
            report: see `save_pretrained`.

        Returns:
            The commit's URL.

        Raises:
            XCiTError: if the upload fails.
        """
        url: str = _sharing().push_to_hub(
            self,
            repo_id,
            private=private,
            token=token,
            branch=branch,
            commit_message=commit_message,
            licence=licence,
            report=report,
        )
        return url
