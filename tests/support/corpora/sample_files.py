"""Reads the shipped corpus with nothing but json, csv and pyarrow, independently of the readers under test."""

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[3]
CORPUS = ROOT / "datasets" / "sample"
MEDIA = CORPUS / "media"
ANNOTATIONS = CORPUS / "annotations"
BASE_URL = "http://sample.invalid/"


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_json(name: str) -> Any:
    return json.loads((ANNOTATIONS / name).read_text(encoding="utf-8"))


def cc3m_lines() -> list[list[str]]:
    text = (ANNOTATIONS / "cc3m/Train_GCC-training.tsv").read_text(encoding="utf-8")
    return [line.split("\t") for line in text.removesuffix("\n").split("\n")]


def laion_rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(ANNOTATIONS / "laion/part-00000.parquet").to_pylist()
    return rows


def webvid_rows() -> list[dict[str, str]]:
    return read_csv(ANNOTATIONS / "webvid/results_2M_train.csv")


def openimages(name: str) -> list[dict[str, str]]:
    return read_csv(ANNOTATIONS / "openimages" / name)


def media_of(url: str) -> Path:
    assert url.startswith(BASE_URL), url
    return MEDIA / url.removeprefix(BASE_URL)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
