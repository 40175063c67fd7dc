"""Commands that a message tells its reader to run, completed with what the reader typed: experiment, store, MLflow."""

import argparse
import re
import shlex

_RUNS = ("store", "tracking_uri", "num_cpus", "inline")
# The options that each job takes and that must be given again for it to see the same.
REPEATED = {
    "full_pretrain.py": _RUNS,
    "run_stage.py": _RUNS,
    "evaluate.py": _RUNS,
    "why.py": ("store",),
    "export.py": ("store",),
    "audit_lineage.py": ("store", "tracking_uri"),
}
_COMMAND = re.compile(r"jobs/(?P<job>\w+\.py) (?P<name><experiment>|[\w.-]+)(?P<rest>[^`\n]*)")


def complete_hints(text: str, options: argparse.Namespace) -> str:
    """`text` in which each `jobs/<job>.py <experiment>` names the experiment as it was typed and repeats its options.

    A command that has an option already keeps its own. Nothing changes for a job that takes no experiment.
    """
    typed = getattr(options, "experiment", None)
    if not typed:
        return text

    def completed(match: re.Match[str]) -> str:
        job, name, rest = match["job"], match["name"], match["rest"]
        if job not in REPEATED or name not in ("<experiment>", _stem(typed)):
            return match[0]
        # The audit takes names of the store, not files.
        words = [f"jobs/{job}", _stem(typed) if job == "audit_lineage.py" else shlex.quote(typed)]
        for option in REPEATED[job]:
            value, flag = getattr(options, option, None), f"--{option.replace('_', '-')}"
            if value not in (None, False) and f"{flag} " not in f"{rest} ":
                words += [flag] if value is True else [flag, shlex.quote(str(value))]
        return " ".join(words) + rest

    return _COMMAND.sub(completed, text)


def _stem(typed: str) -> str:
    """The experiment's name, as messages give it: a file is called like its experiment."""
    return re.sub(r"\.ya?ml$", "", typed.rpartition("/")[2])
