"""A process's own folder for temporary files: removed when its work is done, or by the next run if it was killed.

Libraries leave things in the temporary folder (wandb one folder per process that imports timm, torch its compiler's
cache, multiprocessing its sockets), and no process cleans up after `kill -9`. So whoever runs parts first makes one
folder, `x2vlm-` and eight letters, points `TMPDIR` there, and writes into its file `owner` which process it is.
The names are short, because Unix sockets below them may have 107 bytes.
"""

import atexit
import contextlib
import functools
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipelines.flow.store.identity import Identity, this_process
from pipelines.flow.store.scratch import remove_tree

log = logging.getLogger(__name__)

PREFIX, OWNER = "x2vlm-", "owner"
MAX_RAY_FOLDER = 107 - 68
CACHE_VARIABLE = "X2VLM_CACHE"  # where copies of remote files are kept from run to run


@contextlib.contextmanager
def temporary_home() -> Iterator[Path]:
    """A new folder that this process and those it starts use for temporary files; what dead owners left goes first.

    Copies of remote files stay where they were (`X2VLM_CACHE`, by default the temporary folder of before): the next
    run on this machine wants them.
    """
    base = Path(tempfile.gettempdir())
    before = {name: os.environ.get(name) for name in ("TMPDIR", CACHE_VARIABLE)}
    folder_before = tempfile.tempdir
    clean_abandoned(base)
    home = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
    (home / OWNER).write_text(this_process().token, encoding="utf-8")
    os.environ |= {"TMPDIR": str(home), CACHE_VARIABLE: before[CACHE_VARIABLE] or str(base)}
    tempfile.tempdir = str(home)
    try:
        yield home
    finally:
        tempfile.tempdir = folder_before
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        remove_tree(home)


def cache_base() -> Path:
    """Where folders with copies of remote files lie."""
    return Path(os.environ.get(CACHE_VARIABLE) or tempfile.gettempdir())


def ray_folder() -> str | None:
    """Where a Ray started here is to keep its session, which it never removes; None outside of a `temporary_home`, or
    where that is too far down for the sockets of Ray (107 bytes, of which it takes 68)."""
    home = tempfile.gettempdir()
    return home if (Path(home) / OWNER).exists() and len(home.encode()) <= MAX_RAY_FOLDER else None


@functools.lru_cache(maxsize=1)
def enter_temporary_home() -> None:
    """For a worker that somebody else started and will kill: a `temporary_home` until this process ends.

    Does nothing where the driver's own is in use already, as on a Ray that it started.
    """
    if not (Path(tempfile.gettempdir()) / OWNER).exists():
        _until_exit.enter_context(temporary_home())
        atexit.register(_until_exit.close)


_until_exit = contextlib.ExitStack()


def clean_abandoned(base: Path) -> int:
    """Number of folders removed whose owners are dead; those of other machines' processes are left alone."""
    removed = 0
    for owner in base.glob(f"{PREFIX}*/{OWNER}"):
        try:
            identity = Identity.from_token(owner.read_text(encoding="utf-8"))
        except OSError:
            continue  # somebody else's, or just removed
        if identity is not None and identity.is_alive() is False:
            remove_tree(owner.parent)
            removed += 1
    if removed:
        log.info("event=temporary_folders_cleaned folder=%s number=%d", base, removed)
    return removed
