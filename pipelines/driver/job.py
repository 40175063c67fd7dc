"""What every job shares: its answer, its exit code, and how it ends. Imports nothing that takes time."""

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.driver.endings import Endings, Stop
from pipelines.flow.safe_text import hide, protect_logs, safe, safe_json
from pipelines.hints import complete_hints
from x2vlm.command_line import (
    EXIT_BUSY,
    EXIT_ENVIRONMENT,
    EXIT_FAILED,
    EXIT_FENCED,
    EXIT_TERMINATED,
    EXIT_USAGE,
    JobParser,
)
from x2vlm.errors import (
    ConfigError,
    LeaseLost,
    MissingPackage,
    NotEnoughRoom,
    PlanBusy,
    SourceUnavailable,
    Stopped,
    X2VLMError,
)
from x2vlm.extras import needs

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a job prints: `text` for people, with `warnings` below it, in red on a terminal; `data` with `--json`."""

    exit_code: int
    text: str
    data: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()


def run_as_job(action: Callable[[argparse.Namespace], Outcome], parser: JobParser) -> tuple[str, int]:
    """What a job has to print and its exit code. Every error of ours becomes one clear message.

    Ctrl-C and SIGTERM end the process from here: nothing it started is left, and one paragraph says what is kept.
    """
    endings = Endings()
    endings.install()
    try:
        return _run(action, parser)
    except (KeyboardInterrupt, Stop):
        endings.finish()
    except BaseException:
        if endings.signal is not None:  # what broke because it was stopped
            endings.finish()
        raise
    finally:
        endings.uninstall()
        # A reader that has seen enough (`| head`) ends what prints quietly, as it does with any other command.
        if hasattr(signal, "SIGPIPE"):
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def _run(action: Callable[[argparse.Namespace], Outcome], parser: JobParser) -> tuple[str, int]:
    protect_logs()
    usage_error = parser.error
    parser.error = lambda message: usage_error(safe(message))  # type: ignore[method-assign]
    options = parser.parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    hide(getattr(options, "tracking_uri", None))
    try:
        with needs("this job"):
            outcome = action(options)
    except X2VLMError as error:
        notes = "\n".join(getattr(error, "__notes__", []))
        kind = type(error).__name__
        told = complete_hints(str(error), options)
        outcome = Outcome(exit_code_of(error), f"{kind}: {told}", {"error": told, "kind": kind, "notes": notes})
        if notes:
            log.error("event=job_failed\n%s", notes)
    if options.json:
        warnings = {"warnings": list(outcome.warnings)} if outcome.warnings else {}
        told = safe_json({**outcome.data, **warnings, "exit_code": outcome.exit_code})
        return json.dumps(told), outcome.exit_code
    return "\n\n".join(
        [safe(complete_hints(outcome.text, options)), *map(_in_red, outcome.warnings)]
    ), outcome.exit_code


def _in_red(warning: str) -> str:
    """The warning as stdout takes it: colours for a terminal whose user wants them (NO_COLOR), else plain."""
    text = safe(f"WARNING: {warning}")
    return f"\x1b[1;31m{text}\x1b[0m" if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else text


def exit_code_of(error: X2VLMError) -> int:
    """3 for what the user typed, 4 for what the machine lacks, 5 for another driver, 6 for one that took over, 143 when
    told to stop, else 1."""
    match error:
        case ConfigError():
            return EXIT_USAGE
        case SourceUnavailable() | MissingPackage() | NotEnoughRoom():
            return EXIT_ENVIRONMENT
        case LeaseLost():
            return EXIT_FENCED
        case PlanBusy():
            return EXIT_BUSY
        case Stopped():
            return EXIT_TERMINATED
        case _:
            return EXIT_FAILED
