"""The page of captions and boxes, read back as a browser would."""

import base64
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
import time
from html.parser import HTMLParser
from io import BytesIO

import pytest
from PIL import Image

from tests.support.models.folders import CLIPS, PHOTOS, SAMPLE, save_folder, small_pretrained
from x2vlm import inference
from x2vlm.inference import Grounded
from x2vlm.inference.page import GrowingPage, Shown
from x2vlm.inference.show import show
from x2vlm.inference.visuals import Skipped, Visual
from x2vlm.samples import Box

HOSTILE = "<script>alert(1)</script>\"' onload='x' & </figure>"
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Tags with attributes and the text of a page; AssertionError for tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return save_folder(small_pretrained("bert", folder, 3), folder / "small")


def test_a_page_shows_captions_boxes_and_what_was_left_out(model_folder, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for source in (PHOTOS[0], CLIPS[2], SAMPLE / "media" / "bad" / "page.jpg"):
        shutil.copy(source, photos)
    out = tmp_path / "made" / "page.html"
    arguments = [str(model_folder), str(photos), str(PHOTOS[1]), "--phrases", "a woman", "the snow", "--out", str(out)]
    text, code = show(None, [*arguments, "--json"])
    assert code == 0
    data = json.loads(text)
    assert (data["shown"], [item["rule"] for item in data["skipped"]]) == (3, ["not_media"])
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]

    page = Page(out.read_text(encoding="utf-8"))
    words = " ".join(page.text)
    assert [div["class"] for div in page.all("div")] == ["all", "image", "frames", "image"]
    pretrained = inference.load(model_folder)
    order = [*sorted([photos / PHOTOS[0].name, photos / CLIPS[2].name]), PHOTOS[1]]
    for source, written in zip(order, inference.caption(pretrained, order), strict=True):
        assert written in words
        assert str(source) in words
    assert "page.jpg" in words
    rectangles = [rect for rect in page.all("rect") if rect.get("stroke", "#fff") != "#fff"]
    expected = [found for photo in PHOTOS[:2] for found in inference.ground(pretrained, photo, ["a woman", "the snow"])]
    assert len(rectangles) == len(expected) == 4
    for rect, found in zip(rectangles, expected, strict=True):
        drawn = tuple(float(rect[key]) for key in ("x", "y", "width", "height"))
        assert drawn == pytest.approx((found.box.x, found.box.y, found.box.w, found.box.h), abs=0.051)
    sizes = [Image.open(path).size for path in PHOTOS[:2]]
    assert [svg["viewbox"] for svg in page.all("svg")] == [f"0 0 {width} {height}" for width, height in sizes]
    assert len(page.all("img")) == 2 + 3
    assert f"{100 * expected[0].match_probability:.0f} %" in words


def test_a_page_makes_no_request_and_runs_nothing(model_folder, tmp_path):
    out = tmp_path / "page.html"
    assert show(None, [str(model_folder), str(PHOTOS[0]), "--phrases", HOSTILE, "--out", str(out)])[1] == 0
    text = out.read_text(encoding="utf-8")
    check_harmless(text)
    policy = [meta["content"] for meta in Page(text).all("meta") if "http-equiv" in meta]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def page_of(path, model_name, shown, skipped=()):
    with GrowingPage(path, model_name) as page:
        for item in shown:
            page.add(item)
        page.finish(skipped)
    return path.read_text(encoding="utf-8")


def test_hostile_texts_are_shown_as_text(tmp_path):
    pil_image = Image.new("RGB", (40, 20))
    found = Grounded(HOSTILE, Box(1, 2, 3, 4), 0.5)
    shown = [
        Shown(Visual(HOSTILE, (pil_image,)), HOSTILE, (found,)),
        Shown(Visual("c", (pil_image,) * 3, True), HOSTILE),
    ]
    text = page_of(tmp_path / "page.html", HOSTILE, shown, [Skipped(HOSTILE, HOSTILE, HOSTILE)])
    check_harmless(text)
    page = Page(text)
    assert "".join(page.text).count(HOSTILE) == 2 + 2 + 1 + 1 + 3  # title, model, captions, name, phrase, left out
    assert [image["alt"] for image in page.all("img")] == [HOSTILE] * 4


def check_harmless(text):
    page = Page(text)
    allowed = {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "div", "figure", "figcaption", "img", "svg",
        "rect", "text", "table", "tr", "td", "th", "span",
    }  # fmt: skip
    assert {tag for tag, _ in page.tags} <= allowed
    for _, attributes in page.tags:
        assert not any(name.startswith("on") or name in ("href", "style", "srcset") for name in attributes)
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in page.all("img"))
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert not re.search(r"url\(|@import|http", style)


def test_images_in_the_page_are_small_and_tell_nothing_else(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "SECRET-PLACE"
    pil_image = Image.new("RGB", (3000, 1500), (10, 200, 30))
    pil_image.save(tmp_path / "photo.jpg", exif=exif, comment=b"SECRET-COMMENT")
    with Image.open(tmp_path / "photo.jpg") as opened:
        opened.load()
        page = Page(page_of(tmp_path / "page.html", "m", [Shown(Visual("v", (opened,)), "")]))
        data = base64.b64decode(page.all("img")[0]["src"].partition(",")[2])
    assert b"SECRET" not in data
    assert Image.open(BytesIO(data)).size == (960, 480)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere", "PHOTO", "--out", "OUT"], 3, "no such folder"),
        (["MODEL", "PHOTO", "--phrases", "?!", "--out", "OUT"], 3, "--phrases"),
        (["MODEL", "PHOTO", "--device", "abacus", "--out", "OUT"], 3, "--device abacus"),
        (["MODEL", "PHOTO", "--out", "MODEL"], 3, "--out"),
        (["MODEL", "BAD", "--out", "OUT"], 1, "page.jpg: not_media"),
        (["MODEL", "PHOTO", "--phrases", "\udce9t\udce9", "--out", "OUT"], 3, "--phrases"),
        (["MODEL", "PHOTO"], 3, ""),
        (["--help"], 0, ""),
    ],
)
def test_exit_codes_and_messages(model_folder, tmp_path, arguments, code, message, capsys):
    names = {"MODEL": str(model_folder), "PHOTO": str(PHOTOS[0]), "OUT": str(tmp_path / "page.html")}
    names["BAD"] = str(SAMPLE / "media" / "bad" / "page.jpg")
    text, found = show("help", [names.get(argument, argument) for argument in arguments])
    assert (found, message in text) == (code, True)
    assert not list(tmp_path.iterdir())


def links(folder, number):
    """`number` photos: a few, under many names."""
    folder.mkdir(exist_ok=True)
    for index in range(number):
        os.link(PHOTOS[index % 4], folder / f"{index:04}.jpg")
    return folder


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_page_is_whole_whenever_it_is_read_and_stays_so_after_a_signal(model_folder, tmp_path, name, code):
    folder, out = links(tmp_path / "photos", 400), tmp_path / "page.html"
    job = SAMPLE.parents[1] / "jobs" / "show.py"
    words = [sys.executable, str(job), str(model_folder), str(folder), "--out", str(out), "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        read = []
        while len(read) < 3:
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
            read += [out.read_text(encoding="utf-8")] if out.exists() else []
        process.send_signal(signal.Signals[name])
        sent = time.monotonic()
        text, said = process.communicate(timeout=120)
    found = process.returncode
    assert time.monotonic() - sent < 15, said  # 5 s and what a busy machine adds
    data = json.loads(text)
    assert (found, data["exit_code"], data["files"]) == (code, code, 400)
    assert 8 <= data["shown"] < 400
    counts = [len(Page(text).all("img")) for text in [*read, out.read_text(encoding="utf-8")]]
    assert counts == sorted(counts)
    assert counts[0] % 8 == 0
    assert counts[-1] == data["shown"]
    assert "of 400 files so far" in read[0]
    assert f"Stopped: {data['shown']} of 400" in "".join(Page(out.read_text(encoding="utf-8")).text)
    assert [path.name for path in tmp_path.iterdir() if path != folder] == ["page.html"]


def test_publishing_takes_a_small_share_of_the_time(tmp_path):
    with GrowingPage(tmp_path / "page.html", "m") as page:
        page.publish([], "first")
        page._took = 1e6  # as if the copy had taken that many seconds
        page.publish([], "second")
        assert "first" in (tmp_path / "page.html").read_text()
        page.finish([])
    assert "first" not in (tmp_path / "page.html").read_text()


ODD_NAMES = [b"caf\xe9.jpg", b"\xff\xfe\x80.jpg", b"a\x1b[2Jb.jpg", b"two\nlines.jpg", "\u96ea\x9b.jpg".encode()]


def test_any_bytes_in_file_names_are_shown_and_harm_nothing(model_folder, tmp_path, caplog):
    folder = tmp_path / os.fsdecode(b"photos \xe9")
    folder.mkdir()
    for number, name in enumerate(ODD_NAMES):
        shutil.copy(PHOTOS[number], folder / os.fsdecode(name))
        (folder / os.fsdecode(name + b".txt")).write_bytes(b"no image")
    out = tmp_path / os.fsdecode(b"page \xff.html")
    arguments = [str(model_folder), str(folder), "--out", str(out)]
    for flags in ([], ["--json"]):
        text, code = show(None, [*arguments, *flags])
        assert code == 0
        text.encode("utf-8")
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)
    data = json.loads(text)
    assert (data["shown"], len(data["skipped"])) == (5, 5)
    assert any(item["name"].endswith(r"caf\xe9.jpg.txt") for item in data["skipped"])
    page = Page(out.read_text(encoding="utf-8"))
    words = " ".join(page.text)
    for name in (r"caf\xe9.jpg", r"\xff\xfe\x80.jpg", r"a\x1b[2Jb.jpg", r"two\nlines.jpg", "\u96ea\\x9b.jpg"):
        assert name in words
    assert not [record for record in caplog.records if not record.getMessage().isprintable()]


def test_a_terminal_gets_a_bar_and_a_file_none(model_folder, tmp_path, monkeypatch, capsys):
    folder = links(tmp_path / "photos", 9)
    arguments = [str(model_folder), str(folder), "--out", str(tmp_path / "page.html")]
    assert show(None, arguments)[1] == 0
    assert "9/9" not in capsys.readouterr().err
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        assert show(None, arguments)[1] == 0
        terminal.flush()
        seen = os.read(master, 100_000).decode()
    os.close(master)
    assert "0/9" in seen
    assert "9/9" in seen
