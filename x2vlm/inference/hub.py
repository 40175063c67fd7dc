"""Where a model's folder is: on this disk, or on the Hugging Face hub. Only files that hold no code are fetched."""

from pathlib import Path

from x2vlm.errors import ConfigError, SourceUnavailable
from x2vlm.models.files import ALL_FILES


def locate_model(name: str | Path, revision: str | None = None) -> Path:
    """The folder of a model: `name` itself if it is one, else a snapshot of the hub's repository `owner/name`.

    With a `revision`, `name` may also be one of the few repositories without an owner (`xlm-roberta-base`).
    huggingface_hub decides about cache, token and offline use (HF_HUB_OFFLINE). ConfigError if `name` is neither,
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
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(ALL_FILES)))
    except HFValidationError as error:
        raise ConfigError(f"{name}: neither a folder nor a hub name: {error}") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise SourceUnavailable(
            f"{name}: no such folder here, and the hub does not give it ({type(error).__name__}: {error}); check the "
            "name, the connection and HF_TOKEN, or copy the folder by hand"
        ) from error
