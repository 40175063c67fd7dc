"""What a download child costs: its memory, measured in the child itself."""

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pipelines.s1_download.child.protocol import JOURNAL_NAME, Item, read_journal, write_job
from pipelines.s1_download.child.runner import child_environment
from pipelines.s1_download.config import DownloadConfig

# Not ru_maxrss: that of a child starts at the size of the process that forked it, here a pytest full of libraries.
RUN_JOB = r"""
import re, sys
from pathlib import Path
from pipelines.s1_download.child.worker import run_job
run_job(Path(sys.argv[1]))
print("peak_kib=" + re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
"""


def peak_bytes(folder: Path, urls: Sequence[str], port: int) -> tuple[int, Counter[str]]:
    """The most memory a child ever had while it did these URLs under the default limits, and what became of them."""
    config = DownloadConfig(allow_networks=("127.0.0.1/32",), allow_ports=(port,), host_connections=1000,
                            host_requests_per_second=0.0, host_max_failures=0, image_deadline_seconds=120.0,
                            min_bytes_per_second=0.0, retries=0)  # fmt: skip
    (folder / "child-0").mkdir(parents=True)
    write_job(folder / "child-0", config, config.policy(), [Item(i, "image", url) for i, url in enumerate(urls)])
    command = [sys.executable, "-c", RUN_JOB, str(folder / "child-0")]
    environment = child_environment() | {"TMPDIR": str(folder)}
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    results, in_flight = read_journal(folder / "child-0" / JOURNAL_NAME)
    assert not in_flight
    match = re.search(r"peak_kib=(\d+)", done.stdout)
    assert match is not None
    return int(match[1]) << 10, Counter(result.status for result in results.values())
