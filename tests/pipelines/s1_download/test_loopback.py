"""The loopback server gives out files below its folder and nothing else."""

import http.client
from pathlib import Path

import pytest

from pipelines.s1_download.loopback import serve_bucket, serve_folder
from tests.support.s3 import s3_client, s3_in_environment, s3_server
from x2vlm.errors import SourceUnavailable


def get(address: tuple[str, int], path: str) -> tuple[int, str, bytes]:
    """Status, content type and body; the path goes over the wire as it is."""
    connection = http.client.HTTPConnection(*address, timeout=60)
    connection.putrequest("GET", path, skip_host=True)
    connection.endheaders()
    response = connection.getresponse()
    try:
        return response.status, response.headers.get("Content-Type", ""), response.read()
    finally:
        connection.close()


def test_files_are_served_with_their_type_and_nothing_outside_is(tmp_path: Path) -> None:
    folder = tmp_path / "media"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "media-neighbour").mkdir()
    (tmp_path / "media-neighbour" / "x.jpg").write_text("secret")
    (folder / "sub" / "a b.jpg").write_bytes(b"photo")
    (folder / "clip.mp4").write_bytes(b"clip")
    (folder / "link.jpg").symlink_to(tmp_path / "secret.txt")
    with serve_folder(folder) as address:
        assert get(address, "/sub/a%20b.jpg") == (200, "image/jpeg", b"photo")
        assert get(address, "/clip.mp4?x=1") == (200, "video/mp4", b"clip")
        for path in (
            "/", "/sub", "/sub/", "/absent.jpg", "/../secret.txt", "/..%2fsecret.txt", "/sub/../../secret.txt",
            "/%2e%2e/secret.txt", "//etc/hostname", "/%2fetc/hostname", "/link.jpg", "/../media-neighbour/x.jpg",
            "/%00", "/clip.mp4%00.jpg", "/clip.mp4/", "/" + "a" * 5000,
        ):  # fmt: skip
            status, _, body = get(address, path)
            assert (status, b"secret" in body) == (404, False), path
    with pytest.raises(OSError):
        get(address, "/clip.mp4")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailable, match="no such folder"), serve_folder(tmp_path / "absent"):
        pass


def test_a_bucket_that_does_not_answer_is_asked_again_later(caplog: pytest.LogCaptureFixture) -> None:
    with s3_server() as endpoint:
        s3_client(endpoint).create_bucket(Bucket="media")
        s3_client(endpoint).put_object(Bucket="media", Key="a/1.jpg", Body=b"photo")
        with s3_in_environment(endpoint), serve_bucket("s3://media/a") as address:
            assert get(address, "/1.jpg") == (200, "image/jpeg", b"photo")
            assert get(address, "/2.jpg")[0] == 404
    with s3_in_environment(endpoint), serve_bucket("s3://media/a") as address:  # nobody listens there any more
        assert get(address, "/1.jpg")[0] == 503
    assert "event=local_media_not_read path=/1.jpg error=" in caplog.text
    assert endpoint.removeprefix("http://") in caplog.text  # what was asked, so that the reader knows where to look
