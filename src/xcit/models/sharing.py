"""The three calls by which people share a model, as the Hub's own libraries spell them."""

import os
from importlib import import_module
from pathlib import Path
from typing import Any, Self


def _sharing() -> Any:
    # By name: a model knows no files, and imports go down the house. These calls are what people look for on a model.
    return import_module("xcit.zoo.sharing")


class Shareable:
    """A model that goes to a folder and to the Hub, and comes from there."""

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        licence: str = "",
        report: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Writes the model as a folder: config.json, model.safetensors, README.md (a model card) and manifest.json.

        A classifier that timm has too is written in timm's form, which timm and transformers load (docs/sharing.md).

        Args:
            folder: new or empty.
            licence: of the weights, such as "apache-2.0"; goes into card and manifest.
            report: a report.json of `xcit test`, whose figures go into the card.
            overwrite: replace these four files in the folder.

        Returns:
            The folder.

        Raises:
            XCiTError: if the folder holds something and `overwrite` is not set, or can't be written, or the model is
                fused.
        """
        path: Path = _sharing().save_pretrained(self, folder, licence=licence, report=report, overwrite=overwrite)
        return path

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], *, revision: str | None = None) -> Self:
        """The model of a folder, a weights file or a repository of the Hub ("USER/REPO"), in evaluation mode.

        Args:
            name: a path, or a repository that holds what `save_pretrained`, timm or transformers wrote.
            revision: branch, tag or commit of a repository; none is the main branch.

        Raises:
            XCiTError: if it can't be had or read, or is another kind of model.
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
        """Uploads what `save_pretrained` writes to a repository of the Hub, made if it is not there.

        Args:
            repo_id: "USER/REPO".
            private: whether a new repository is private; none leaves it to the account's default.
            token: of the Hub; none takes the one that this machine is logged in with.
            branch: to commit to; none is the main one.
            commit_message: of the one commit.
            licence: see `save_pretrained`.
            report: see `save_pretrained`.

        Returns:
            The commit's URL.

        Raises:
            XCiTError: if it can't be uploaded.
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
