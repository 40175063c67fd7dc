"""The store that a command works on."""

from pipelines.experiment import secret_in
from pipelines.flow.store.store import Store
from x2vlm.errors import ConfigError


def open_store(uri: str) -> Store:
    """The store at `uri`; ConfigError if a file lies there, or if the URI holds a secret."""
    if told := secret_in(uri):
        raise ConfigError(f"store: {told}")
    store = Store(uri)
    if store.local_root is not None and store.local_root.exists() and not store.local_root.is_dir():
        raise ConfigError(f"store {store.local_root} is a file; give a folder with --store, or move the file away")
    return store
