"""Where a model's folder is: on this disk, or on the Hugging Face hub. Only files that hold no code are fetched."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from x2vlm.errors import ConfigError, SourceUnavailable
from x2vlm.models.files import ALL_FILES

if TYPE_CHECKING:
    from x2vlm.inference.encoding import Pretrained


def locate_model(name: str | Path, revision: str | None = None, **options: Any) -> Path:
    """The folder of a model: `name` itself if it is one, else a snapshot of the hub's repository `owner/name`.

    With a `revision`, `name` may also be one of the few repositories without an owner (`xlm-roberta-base`).
    huggingface_hub decides about cache, token and offline use (HF_HUB_OFFLINE); `options` go to its
    `snapshot_download`. ConfigError if `name` is neither,
    SourceUnavailable if the hub does not give it.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    is_hub_name = not isinstance(name, Path) and name.count("/") in ((1,) if revision is None else (0, 1))
    if isinstance(name, Path) or not is_hub_name or name.startswith((".", "/", "~")) or name.endswith("/"):
        raise ConfigError(f"{name}: no such folder, and not a hub name (owner/name); give a folder with config.json")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise SourceUnavailable(
            f"{name}: no such folder, and huggingface_hub is not installed to fetch it; pip install huggingface_hub"
        ) from None
    try:
        # Never pickles: `*.bin`, `*.pt` and `*.th` stay where they are.
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(ALL_FILES), **options))
    except HFValidationError as error:
        raise ConfigError(f"{name}: neither a folder nor a hub name: {error}") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise SourceUnavailable(
            f"{name}: no such folder here, and the hub does not give it ({type(error).__name__}: {error}); check the "
            "name, the connection and HF_TOKEN, or copy the folder by hand"
        ) from error


def push_to_hub(
    pretrained: Pretrained,
    repository: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    message: str = "Upload an X2-VLM model",
) -> str:
    """Upload model and processor as one commit to the hub's repository `owner/name`; returns the commit's address.

    The repository is made if there is none. SourceUnavailable if the hub refuses; its words say why.
    """
    from x2vlm.inference.pretrained import save_pretrained

    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError:
        raise SourceUnavailable(
            "huggingface_hub is not installed to upload with; pip install huggingface_hub"
        ) from None
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(pretrained.model, Path(folder), processor=pretrained.processor)
        api = HfApi(token=token)
        try:
            name = api.create_repo(repository, private=private, exist_ok=True).repo_id
            found = api.upload_folder(repo_id=name, folder_path=folder, commit_message=message, revision=revision)
        except HFValidationError as error:
            raise ConfigError(f"{repository}: not a hub name: {error}") from None
        except (HfHubHTTPError, OSError) as error:
            raise SourceUnavailable(
                f"{repository}: the hub does not take it ({type(error).__name__}: {error}); check the name, the "
                "connection, and that HF_TOKEN may write there"
            ) from error
    return str(found.commit_url)
