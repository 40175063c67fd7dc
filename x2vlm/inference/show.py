"""The command that shows what a model makes of some images: a caption each, and where it sees the phrases asked for.

The qualitative study of the paper (X2-VLM, figures of captions and of concepts typed by hand) for anybody's images, as
one page (`x2vlm.inference.page`) that is readable after the first batch and stays so, whenever the command is stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from x2vlm.command_line import (
    EXIT_ENVIRONMENT,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_TERMINATED,
    EXIT_USAGE,
    JobParser,
    printable,
)
from x2vlm.errors import ConfigError, InvalidSample, MissingPackage, SourceUnavailable, X2VLMError

if TYPE_CHECKING:  # `--help` does not wait for torch
    from x2vlm.inference.api import Pretrained
    from x2vlm.inference.page import Shown
    from x2vlm.inference.visuals import Skipped, Visual

log = logging.getLogger(__name__)

FILES_PER_BATCH = 8
PIXELS_PER_BATCH = 64_000_000  # opened images that are in memory together: 200 MB; a single one may be larger


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends the command as Ctrl-C does: with a page of what was made so far."""


@dataclass
class Progress:
    """What became of the files so far, and on what the model runs."""

    num_files: int = 0
    num_shown: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    runs_on: str = ""
    stopped_with: int = EXIT_OK

    @property
    def num_done(self) -> int:
        return self.num_shown + len(self.skipped)


def show(description: str | None, arguments: Sequence[str] | None = None) -> tuple[str, int]:
    """What `jobs/show.py` prints, and its exit code.

    0 done, 1 failed, 3 wrong usage, 4 the model or a package is not to be had, 130 and 143 stopped.
    """
    parser = JobParser(description)
    parser.add_argument("model", help="folder with config.json, or a hub name (owner/name)")
    parser.add_argument("images", nargs="+", help="images, clips, or folders of them")
    parser.add_argument("--phrases", nargs="+", default=[], help='what to look for, such as "a red bus"')
    parser.add_argument("--out", type=Path, required=True, help="the page to write")
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, ...; auto: a GPU if there is one (default: %(default)s)"
    )
    try:
        options = parser.parse(arguments)
    except SystemExit as stop:
        return "", EXIT_USAGE if stop.code else EXIT_OK
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        with _terminated_like_interrupted():
            progress = write_page(options)
    except X2VLMError as error:
        code, lines = _exit_code_of(error), [f"{type(error).__name__}: {error}"]
        data: dict[str, object] = {"error": printable(str(error)), "exit_code": code}
    except KeyboardInterrupt as stop:  # before there was anything to show
        code, lines = _stopped_with(stop), [f"stopped before anything was shown; {options.out} is as it was"]
        data = {"error": lines[0], "exit_code": code}
    else:
        code = progress.stopped_with
        lines, data = _told(options.out, progress)
    text = "\n".join(printable(line) for told in lines for line in told.splitlines())
    return (json.dumps(data) if options.json else text), code


def _told(out: Path, progress: Progress) -> tuple[list[str], dict[str, object]]:
    left_out = [f"left out {item.name}: {item.rule}" for item in progress.skipped]
    stopped = [] if progress.stopped_with == EXIT_OK else [f"stopped: {_stopping_note(progress)}"]
    lines = [f"{out}: {progress.num_shown} shown, {len(progress.skipped)} left out", *stopped, *left_out]
    skipped = [{key: printable(value) for key, value in vars(item).items()} for item in progress.skipped]
    data = {
        "page": printable(str(out)),
        "shown": progress.num_shown,
        "files": progress.num_files,
        "skipped": skipped,
        "runs_on": progress.runs_on,
        "exit_code": progress.stopped_with,
    }
    return lines, data


def _stopping_note(progress: Progress) -> str:
    return f"{progress.num_done} of {progress.num_files} files were looked at. The same command begins anew"


def _exit_code_of(error: X2VLMError) -> int:
    match error:
        case ConfigError():
            return EXIT_USAGE
        case SourceUnavailable() | MissingPackage():
            return EXIT_ENVIRONMENT
        case _:
            return EXIT_FAILED


def _stopped_with(stop: KeyboardInterrupt) -> int:
    return EXIT_TERMINATED if isinstance(stop, Terminated) else EXIT_INTERRUPTED


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread hears signals
        return

    def stop(number: int, frame: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def write_page(options: argparse.Namespace) -> Progress:
    """Writes the page, whole after every batch; what became of the files.

    KeyboardInterrupt ends it early, with a page of what there is. InvalidSample if none of the files can be shown;
    ConfigError for a device or a phrase that cannot be used.
    """
    from x2vlm.inference.page import GrowingPage

    files = _files(options.images)
    pretrained, runs_on = _load(options)
    progress = Progress(num_files=len(files), runs_on=runs_on)
    try:
        with GrowingPage(options.out, Path(options.model).name) as page:
            try:
                for batch in _described(pretrained, files, options.phrases, progress):
                    for item in batch:
                        page.add(item)
                        progress.num_shown += 1
                    if progress.num_shown and progress.num_done < len(files):
                        page.publish(progress.skipped, f"{progress.num_done} of {len(files)} files so far.")
            except KeyboardInterrupt as stop:
                if not progress.num_shown:
                    raise
                progress.stopped_with = _stopped_with(stop)
            if not progress.num_shown:
                seen = "; ".join(f"{item.name}: {item.rule}" for item in progress.skipped[:10])
                raise InvalidSample("nothing_to_show", f"no image or clip among the given files ({seen or 'none'})")
            page.finish(progress.skipped, f"Stopped: {_stopping_note(progress)}." if progress.stopped_with else "")
    except OSError as error:
        raise ConfigError(f"--out {options.out}: {error}") from error
    return progress


def _load(options: argparse.Namespace) -> tuple[Pretrained, str]:
    """The model, and where it runs in words."""
    from x2vlm.inference.api import load
    from x2vlm.inference.device import choose_device, limit_threads

    device = choose_device(options.device)
    pretrained = load(options.model, device)
    try:
        pretrained.processor.texts(options.phrases)
    except InvalidSample as error:
        raise ConfigError(f"--phrases: {error}") from None
    num_threads = limit_threads(sum(parameter.numel() for parameter in pretrained.model.parameters()))
    runs_on = f"{device}" if device.type != "cpu" else f"cpu, {num_threads} thread{'s' if num_threads > 1 else ''}"
    log.info("event=model_loaded model=%s runs_on=%r", printable(options.model), runs_on)
    return pretrained, runs_on


def _described(
    pretrained: Pretrained, files: Sequence[Path], phrases: Sequence[str], progress: Progress
) -> Iterator[list[Shown]]:
    """What the model makes of the files, batch by batch; those that cannot be read go to `progress.skipped`."""
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    from x2vlm.inference.visuals import Skipped, read_visuals

    config = pretrained.processor.config
    waiting: list[Visual] = []
    # `disable=None`: a bar on a terminal, nothing in a file.
    with tqdm(total=len(files), unit="file", disable=None) as bar, logging_redirect_tqdm():
        for found in read_visuals(files, config.frames_per_clip, config.frames_per_second):
            if isinstance(found, Skipped):
                log.warning("event=left_out file=%s rule=%s", printable(found.name), found.rule)
                progress.skipped.append(found)
                bar.update()
                continue
            waiting.append(found)
            num_pixels = sum(frame.width * frame.height for visual in waiting for frame in visual.frames)
            if len(waiting) == FILES_PER_BATCH or num_pixels > PIXELS_PER_BATCH:
                yield describe(pretrained, waiting, phrases)
                bar.update(len(waiting))
                waiting.clear()
        yield describe(pretrained, waiting, phrases)
        bar.update(len(waiting))


def describe(pretrained: Pretrained, visuals: Sequence[Visual], phrases: Sequence[str]) -> list[Shown]:
    """The model's caption of each, and its box for every phrase; clips get a caption only."""
    from x2vlm.inference.api import caption, ground
    from x2vlm.inference.page import Shown

    return [
        Shown(visual, text, () if visual.is_clip or not phrases else tuple(ground(pretrained, visual, phrases)))
        for visual, text in zip(visuals, caption(pretrained, visuals), strict=True)
    ]


def _files(names: Sequence[str]) -> list[Path]:
    from x2vlm.inference.visuals import list_files

    paths = [Path(name) for name in names]
    return [file for path in paths for file in (list_files(path) if path.is_dir() else [path])]
