"""`jobs/new_source.py`: what it understands of a table, what it refuses, and that what it writes can be run."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.experiment import load_experiment
from pipelines.graph import build_graph
from pipelines.new_source.command import printable
from tests.hostile.payloads import jpeg
from tests.support.sets.new_source import look, rows_of
from x2vlm.data.cards import load_card
from x2vlm.errors import ConfigError

WEB = "https://a.example/{}.jpg"


def csv_of(folder: Path, rows: list[str], name: str = "my data.csv", header: str = "url,caption") -> Path:
    path = folder / name
    path.write_text("\n".join([header, *rows] if header else rows) + "\n", encoding="utf-8")
    return path


def test_a_table_of_addresses_becomes_a_card_and_an_experiment(tmp_path: Path) -> None:
    rows = [f"{WEB.format(number)},text {number}" for number in range(30)]
    text, data = look(tmp_path / "out", csv_of(tmp_path, [*rows, "bad", f"{WEB.format(99)},\x1b[31mred"]))
    assert (data["num_rows"], data["size"], data["dropped"]) == (32, "toy", {"wrong_column_count": 1})
    assert "of the first 32, 31 can be used" in text
    assert "not used: wrong_column_count 1" in text
    card = load_card(Path(data["card"]))
    assert (card.id, card.reader, card.url_base, card.allow_networks) == ("my_data", "table", None, ())
    experiment = load_experiment(data["experiment"])
    assert experiment.download.allow_ports == (80, 443)
    assert "score/my_data" in build_graph(experiment)
    assert data["next"] == f"python jobs/full_pretrain.py {data['experiment']} --inline"


@pytest.mark.parametrize(
    ("header", "rows", "arguments", "message"),
    [
        ("link,words", [WEB.format(1) + ",a"], (), "no column is known to hold a caption. Say which: --caption NAME"),
        ("link,url,text", ["a,b,c"], (), "several columns could be the url: .* Say which: --url link"),
        ("url,caption", ["http://127.0.0.1:8899/1.jpg,a"], (), r"127.0.0.1 \(127.0.0.1/32\).* give --allow-private"),
        ("url,caption", ["http://10.1.2.3/1.jpg,a"], (), r"10.1.2.3 .* give --allow-private"),
        ("url,caption", ["http://localhost/1.jpg,a"], (), r"localhost .* give --allow-private"),
        ("url,caption", ["nowhere/1.jpg,a"], (), "lead to no file; .* --media"),
        ("url,caption", [], (), "none of the first 0 rows can be used: it is empty"),
        ("url,caption", [",a"], (), "none of the first 1 rows can be used: missing_url 1"),
        (
            "url,caption",
            [WEB.format(1) + ",a"],
            ("--caption", "captoin"),
            "no column `captoin`.*did you mean `caption`",
        ),
        ("url,caption", [WEB.format(1) + ",a"], ("--name", "sample"), "a shipped experiment has that name"),
        ("url,caption", [WEB.format(1) + ",a"], ("--name", "My"), "lower case letters"),
        ("url,boxes,labels", [WEB.format(1) + ",,"], ("--boxes", "boxes"), "--box-format"),
        ("", ["a dog\thttps://a.example/1.jpg\tx"], (), "its first line is no header.* --url 1 --caption NUMBER"),
    ],
)
def test_what_is_not_understood_is_said_before_anything_is_written(
    tmp_path: Path, header: str, rows: list[str], arguments: tuple[str, ...], message: str
) -> None:
    table = csv_of(tmp_path, rows, "t.csv" if header else "t.tsv", header)
    with pytest.raises(ConfigError, match=message):
        look(tmp_path / "out", table, *arguments)
    assert not (tmp_path / "out").exists()


def test_a_table_without_header_is_told_by_its_first_line(tmp_path: Path) -> None:
    table = csv_of(tmp_path, [f"a dog {number}\t{WEB.format(number)}" for number in range(8)], "t.tsv", "")
    text, data = look(tmp_path / "out", table)
    assert "no header: column 1 holds addresses, column 0 captions" in text
    assert load_card(Path(data["card"])).columns == {"url": (1,), "caption": (0,)}
    assert data["num_rows"] == 8


def test_private_addresses_and_ports_are_written_where_they_take_effect(tmp_path: Path) -> None:
    rows = [f"http://127.0.0.1:8899/{number}.jpg,a dog" for number in range(4)] + ["http://a.example:8080/1.jpg,b"]
    text, data = look(tmp_path / "out", csv_of(tmp_path, rows), "--allow-private")
    assert load_card(Path(data["card"])).allow_networks == ("127.0.0.1/32",)
    experiment = load_experiment(data["experiment"])
    config = build_graph(experiment)["download/my_data"].config
    assert (config.allow_networks, config.allow_ports) == (("127.0.0.1/32",), (80, 443, 8080, 8899))
    assert "allow_ports 8080, 8899" in text


@pytest.mark.parametrize(
    ("table", "paths", "serve"),
    [
        ("t.csv", ["photos/1.jpg", "photos/2.jpg"], "."),
        ("annotations/t.csv", ["photos/1.jpg", "photos/2.jpg"], "."),
        ("annotations/t.csv", ["../photos/1.jpg", "../photos/2.jpg"], "photos"),
        ("annotations/t.csv", ["{root}/photos/1.jpg", "{root}/photos/2.jpg"], "photos"),
        ("t.csv", ["1.jpg", "2.jpg"], "photos"),
    ],
)
def test_paths_are_found_wherever_they_begin(tmp_path: Path, table: str, paths: list[str], serve: str) -> None:
    for folder in ("photos", "annotations"):
        (tmp_path / folder).mkdir()
    for number in (1, 2):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(jpeg(40, 40))
    rows = [f"{path.format(root=tmp_path)},a dog" for path in paths]
    media = ("--media", str(tmp_path / "photos")) if paths[0] == "1.jpg" else ()
    _, data = look(tmp_path / "out", csv_of(tmp_path, rows, table), *media)
    card = load_card(Path(data["card"]))
    assert card.url_base is not None
    assert Path(card.url_base.serve) == (tmp_path / serve).resolve()
    names = {"photos": {"1.jpg", "2.jpg"}, ".": {"photos/1.jpg", "photos/2.jpg"}}[serve]
    assert _read(tmp_path, data) == {f"http://local.invalid/{name}" for name in names}


def _read(tmp_path: Path, data: dict[str, Any], *targets: str) -> set[str]:
    """The addresses of the rows after the stages up to `targets` have run."""
    return {row["url"] for row in rows_of(tmp_path / "store", data, *targets)}


def test_files_that_somebody_changed_are_kept(tmp_path: Path) -> None:
    table = csv_of(tmp_path, [f"{WEB.format(number)},a dog" for number in range(4)])
    _, data = look(tmp_path / "out", table)
    assert look(tmp_path / "out", table)[1] == data  # the same once more changes nothing
    Path(data["experiment"]).write_text("# mine\n")
    with pytest.raises(ConfigError, match=r"my_data.yaml: there already, .* --force"):
        look(tmp_path / "out", table)
    assert Path(data["experiment"]).read_text() == "# mine\n"
    look(tmp_path / "out", table, "--force")
    assert load_experiment(data["experiment"])


@pytest.mark.parametrize("size", ["toy", "small", "base"])
def test_every_size_is_an_experiment(tmp_path: Path, size: str) -> None:
    header = "url,caption,kind,boxes,labels"
    rows = [f'{WEB.format(number)},a,{("image", "clip")[number % 2]},"[[1,2,3,4]]",dog' for number in range(40)]
    text, data = look(tmp_path / "out", csv_of(tmp_path, rows, "t.csv", header), "--size", size, "--box-format", "xywh")
    experiment = load_experiment(data["experiment"])
    assert [stream.kind for stream in experiment.pretrain.data.streams] == ["image", "region", "video"]
    assert ("hub" in text) == (size != "toy")


@pytest.mark.parametrize(
    ("text", "shown"), [("a\x1b[2Jb", "a\\x1b[2Jb"), ("\u202eevil", "\\u202eevil"), ("x" * 30, "x" * 19 + "…")]
)
def test_nothing_a_table_holds_reaches_the_terminal_raw(text: str, shown: str) -> None:
    assert printable(text, 20) == shown


@pytest.fixture
def server() -> Iterator[int]:
    """Photos on a port of this machine; the query must come without HTML escapes."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = jpeg(64, 64) if self.path.endswith(".jpg?w=64&h=64") else b""
            self.send_response(200 if body else 404)
            self.send_header("Content-Type", "image/jpeg")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        thread = threading.Thread(target=found.serve_forever, daemon=True)
        thread.start()
        yield found.server_port
        found.shutdown()
        thread.join()


def test_addresses_with_html_escapes_are_fetched_and_stay_as_written(tmp_path: Path, server: int) -> None:
    escapes = ["?w=64&amp;h=64", "?w=64&#38;h=64", "?w=64&amp;amp;h=64", "?w=64&h=64"]
    urls = {f"http://127.0.0.1:{server}/{number}.jpg{escape}" for number, escape in enumerate(escapes)}
    table = csv_of(tmp_path, [f"{url},a dog" for url in sorted(urls)])
    _, data = look(tmp_path / "out", table, "--allow-private")
    assert _read(tmp_path, data, "download") == urls
