"""What img2dataset itself makes of a list of addresses on this machine, in each of its formats.

python -m tests.support.sets.img2dataset_runs FOLDER PORT   (a process of its own: img2dataset starts workers)
"""

import contextlib
import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from tests.support.sets.files import picture

FORMATS = ("webdataset", "parquet", "files")
NUM_ROWS = 24
SHARD_ROWS = 10
GONE, BROKEN = (3, 14), (7, 21)  # rows whose address answers 404, and rows whose bytes are no picture


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        number = int(self.path.strip("/").partition(".")[0])
        if number in GONE:
            self.send_error(404)
            return
        body = b"this is no picture" if number in BROKEN else picture(number, (64, 48))
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@contextlib.contextmanager
def serving() -> Iterator[int]:
    """The port of a server on this machine that answers for every row."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def make_outputs(folder: Path) -> None:
    """`folder`/webdataset, /parquet and /files: three shards each, of 10, 10 and 4 rows.

    Tars and files hold the bytes as they came, Parquet pictures that img2dataset has encoded anew.
    """
    with serving() as port:
        command = [sys.executable, "-m", "tests.support.sets.img2dataset_runs", str(folder), str(port)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def caption(number: int) -> str:
    """The caption of a row: with a comma and a line break, as alt texts have them."""
    return f"picture {number},\nin two lines"


def _download(folder: Path, port: int) -> None:
    """What img2dataset's command does with each shard, in one process instead of pools of them (70 CPU seconds)."""
    from img2dataset.downloader import Downloader
    from img2dataset.resizer import Resizer
    from img2dataset.writer import FilesSampleWriter, ParquetSampleWriter, WebDatasetSampleWriter

    writers = dict(zip(FORMATS, (WebDatasetSampleWriter, ParquetSampleWriter, FilesSampleWriter), strict=True))
    for output_format, writer in writers.items():
        target = folder / output_format
        target.mkdir()
        encodes = output_format == "parquet"
        resizer = Resizer(32, "keep_ratio" if encodes else "no", True, disable_all_reencoding=not encodes)
        downloader = Downloader(
            sample_writer_class=writer,
            resizer=resizer,
            thread_count=4,
            save_caption=True,
            extract_exif=True,
            output_folder=str(target),
            column_list=["caption", "url"],
            timeout=10,
            number_sample_per_shard=SHARD_ROWS,
            oom_shard_count=5,
            compute_hash="sha256",
            verify_hash_type=None,
            encode_format="jpg",
            retries=0,
            user_agent_token=None,
            disallowed_header_directives=None,
        )
        for shard in range(-(-NUM_ROWS // SHARD_ROWS)):
            numbers = range(shard * SHARD_ROWS, min(NUM_ROWS, (shard + 1) * SHARD_ROWS))
            urls = [f"http://127.0.0.1:{port}/{number}.jpg" for number in numbers]
            table = pa.table({"caption": [caption(number) for number in numbers], "url": urls})
            path = folder / f"{output_format}-{shard}.feather"
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as file:
                file.write_table(table)
            is_done, _ = downloader((shard, str(path)))
            assert is_done


if __name__ == "__main__":
    # As where img2dataset alone is installed: it would import both.
    for absent in ("torch", "ray", "pyspark"):
        sys.modules[absent] = None  # type: ignore[assignment]
    _download(Path(sys.argv[1]), int(sys.argv[2]))
