"""What people are shown and what is written down holds no secret, and nothing that a terminal would obey."""

import json
import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.experiment import Experiment
from pipelines.flow import safe_text
from pipelines.flow.safe_text import has_secret, hide, mask, mask_url, printable, safe, safe_json
from tests.support.settings import changed, sample_values
from x2vlm.config import parse_config
from x2vlm.errors import ConfigError

CANARY = "hunter2-canary"
SECRETS = [
    f"http://me:{CANARY}@host/x",
    f"http://{CANARY}@host/x",
    f"https://me:p@{CANARY}@host",
    f"postgresql+psycopg2://me:{CANARY}@db:5432/mlflow?sslmode=require",
    f"https://bucket.s3.amazonaws.com/a.tsv?X-Amz-Date=1&X-Amz-Signature={CANARY}&b=1",
    f"https://acc.blob.core.windows.net/c/a?sv=1&sig={CANARY}",
    f"https://host/a?access_token={CANARY}",
    f"https://host/a#id_token={CANARY}",
    f"https://host/a?user=me;password={CANARY}",
    f"s3://AKIA:{CANARY}@bucket/store",
]
HARMLESS = [
    "https://host/@user/photo@2x.jpg?author=me&page=2",
    "abfs://container@account.dfs.core.windows.net/store",
    "hf://datasets/user/name@main/a.parquet",
    "datasets/sample/vocab.txt",
    "x2vlm-download/1.0 (mail me@example.org)",
]


@pytest.mark.parametrize("text", SECRETS)
def test_a_secret_in_an_address_is_masked_and_recognised(text: str) -> None:
    told = mask(f"cannot reach '{text}' (twice: {text})")
    assert CANARY not in told
    assert "***" in told
    assert has_secret(text)
    assert CANARY not in json.dumps(safe_json({"a": [text, {"b": (text, 1)}]}))


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_is_none(text: str) -> None:
    assert not has_secret(text)
    if "abfs" not in text:
        assert mask(text) == text


@pytest.mark.parametrize("text", SECRETS)
@pytest.mark.parametrize("path", [("store",), ("clip_model",), ("sources", "coco", "media_root"), ("vocabulary",)])
def test_no_setting_of_an_experiment_holds_one(text: str, path: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(Experiment, changed(sample_values(), path, text), "here.yaml")
    assert f"  {'.'.join(path)}: " in str(caught.value)
    assert "AWS_ACCESS_KEY_ID" in str(caught.value)
    assert CANARY not in str(caught.value)


def test_what_is_hidden_is_masked_apart_from_its_address_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safe_text, "_known", set())
    hide(f"postgresql://me:{CANARY}%21@db/mlflow")
    hide("http://host:5000")
    hide("http://me:pw@host")  # too short to look for everywhere
    hide(None)
    assert mask(f"password {CANARY}! or {CANARY}%21 is wrong") == "password *** or *** is wrong"
    assert mask("pw is a word") == "pw is a word"


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("\x1b[2J", r"\x1b[2J"),
        ("\x1b]52;c;eA==\x07", r"\x1b]52;c;eA==\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("a\r\nlevel=INFO forged", r"a\r\nlevel=INFO forged"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("a\u2028b\u2066\ufeff\x7f", r"a\u2028b\u2066\ufeff\x7f"),
        ("\udcff\udc80.jpg", r"\xff\x80.jpg"),  # a file name that is not UTF-8
        ("café 猫 👩‍👩‍👧 نامه‌ای", "café 猫 👩‍👩‍👧 نامه‌ای"),
    ],
)
def test_nothing_that_a_terminal_obeys_is_printed(raw: str, shown: str) -> None:
    assert printable(raw) == shown
    shown.encode()


@given(st.text(max_size=60))
def test_any_text_is_one_line_that_can_be_printed(text: str) -> None:
    assert len(printable(text).splitlines()) <= 1
    assert printable(printable(text)) == printable(text)
    assert safe(text).count("\n") == text.count("\n")
    printable(text).encode()


@pytest.mark.parametrize(
    "text",
    ["http://h/?" + "key" * 30_000, "x" * 100_000 + "://", "a://" * 30_000, "?;" * 50_000 + "://", "@:" * 50_000],
)
def test_masking_takes_linear_time(text: str) -> None:
    began = time.process_time()
    mask_url(text)
    assert time.process_time() - began < 1.0


LOGS = f"""
import logging, sys
from pipelines.flow.safe_text import protect_logs
protect_logs(); protect_logs()
logging.basicConfig(stream=sys.stderr)
log = logging.getLogger("a")
log.warning("fetch %s %d\\x1b[2J", "http://me:{CANARY}@h/", 3)
log.warning({{"a": 1}})
log.warning("too few %s %s", 1)
try:
    raise OSError("https://h/?token={CANARY}\\x9b")
except OSError:
    log.exception("failed")
raise ValueError("http://me:{CANARY}@h/\\x1b]0;x\\x07")
"""


def test_logs_and_last_words_of_a_process_are_safe(project_root: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LOGS], cwd=project_root, capture_output=True, text=True, check=False)
    assert CANARY not in done.stderr.replace(LOGS, "")
    assert "fetch http://***@h/ 3\\x1b[2J" in done.stderr
    assert "OSError: https://h/?token=***" in done.stderr
    assert done.stderr.endswith("ValueError: http://***@h/\\x1b]0;x\\x07\n")
    assert all(character.isprintable() or character in "\n\t" for character in done.stderr)
    assert done.returncode == 1
    assert logging.getLogRecordFactory()
