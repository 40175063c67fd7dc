"""The command: every size in processes of its own, a table of what was measured, and what it grows to."""

import argparse
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.experiment import load_experiment
from pipelines.simulation import measure, report
from pipelines.simulation.scenario import Scenario, large_source
from x2vlm.errors import ConfigError, StageFailed

log = logging.getLogger(__name__)


def simulate(options: argparse.Namespace) -> tuple[str, Mapping[str, Any]]:
    """The text and the figures. ConfigError for sizes that cannot be."""
    if options.rows < 1 or options.rows_per_part < 1:
        raise ConfigError("--rows and --rows-per-part: whole numbers above 0")
    in_all = -(-options.rows // options.rows_per_part)
    sizes = options.sizes or ((options.parts,) if options.parts else (in_all,))
    if wrong := [size for size in sizes if not 1 <= size <= in_all]:
        raise ConfigError(f"--sizes: {wrong[0]} parts; {options.rows} rows are 1 to {in_all} parts")
    if options.out and not Path(options.out).absolute().parent.is_dir():
        raise ConfigError(f"--out {options.out}: there is no folder {Path(options.out).parent}; make it first")
    source = large_source(load_experiment(options.experiment), options.source)
    found = []
    for parts in sorted(set(sizes)):
        asked = {
            "experiment": options.experiment,
            "source": source,
            "parts": parts,
            "rows_per_part": options.rows_per_part,
            "parts_in_all": in_all,
            "sorted_by_key": not options.unsorted,
            "seed": options.seed,
        }
        found.append(_measured(asked))
        log.info("event=simulated %s", report.progress(found[-1]))
    prices = report.Prices(options.dollars_per_million_writes, options.dollars_per_million_reads)
    told = report.to_json(found, in_all, prices)
    if options.out:
        Path(options.out).write_text(json.dumps(told, indent=2) + "\n")
    return report.text(options.experiment, source, found, in_all, prices, not options.unsorted), told


def _measured(asked: Mapping[str, Any]) -> measure.Measurement:
    with tempfile.TemporaryDirectory(prefix="x2vlm-simulation-") as folder:
        values = _child({**asked, "folder": folder, "again": False})
        values |= _child({**asked, "folder": folder, "again": True})
    return measure.Measurement.of(values)


def _child(asked: Mapping[str, Any]) -> dict[str, Any]:
    words = [sys.executable, "-m", "pipelines.simulation.command", json.dumps(asked)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StageFailed(f"a simulation of {asked['parts']} parts failed:\n{done.stderr.strip()[-4000:]}")
    values: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return values


def _answer(asked: dict[str, Any]) -> dict[str, Any]:
    """What a child measures."""
    folder, again = Path(asked.pop("folder")), asked.pop("again")
    scenario = Scenario(load_experiment(asked.pop("experiment")), **asked)
    if not again:
        return measure.drive(scenario, folder).as_json()
    return measure.rerun(scenario, folder)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_answer(json.loads(sys.argv[1]))) + "\n")
