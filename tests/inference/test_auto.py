"""transformers' Auto classes, and uploading and downloading by a hub's HTTP interface on this machine."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest
import torch

from tests.support.models.folders import PHOTOS, save_folder, small_pretrained
from x2vlm import inference
from x2vlm.errors import ConfigError, InvalidSample, SourceUnavailable

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_folder(small_pretrained("bert", tmp_path_factory.mktemp("made")), tmp_path_factory.mktemp("model"))


def test_auto_classes_load_a_folder_and_answer_as_inference_does(folder):
    from transformers import AutoConfig, AutoModel, AutoProcessor

    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    loaded = inference.load(folder)
    assert AutoConfig.from_pretrained(folder).model == loaded.model.config.model_dump(mode="json")
    assert not model.training
    texts = ["a dog", "two people on a bus"]
    inputs = processor(images=[str(path) for path in PHOTOS[:2]], text=texts)
    with torch.no_grad():
        outputs = model(**inputs)
        alone = model.get_text_features(inputs["input_ids"], inputs["attention_mask"])
        images = model.get_image_features(inputs["pixel_values"])
    close = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(outputs.image_embeds, inference.embed_images(loaded, PHOTOS[:2]), **close)
    torch.testing.assert_close(outputs.text_embeds, inference.embed_texts(loaded, texts), **close)
    probability = inference.match(loaded, PHOTOS[:2], texts)
    torch.testing.assert_close(outputs.match_logits.softmax(dim=-1)[:, 1], probability, **close)
    torch.testing.assert_close((images, alone), (outputs.image_embeds, outputs.text_embeds))
    assert processor.decode(inputs["input_ids"][0]) == "a dog"
    assert model(pixel_values=inputs["pixel_values"]).match_logits is None
    half = AutoModel.from_pretrained(folder, dtype=torch.bfloat16)
    assert next(half.parameters()).dtype == torch.bfloat16
    with pytest.raises(ConfigError, match="device_map"):
        AutoModel.from_pretrained(folder, device_map="auto")
    with pytest.raises(InvalidSample):
        processor(images=[None])


def test_what_they_save_is_the_same_folder(folder, tmp_path):
    from transformers import AutoModel, AutoProcessor

    AutoModel.from_pretrained(folder).save_pretrained(tmp_path / "again")
    AutoProcessor.from_pretrained(folder).save_pretrained(tmp_path / "again")
    for path in folder.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    "order",
    [
        pytest.param("import x2vlm.inference", id="before"),
        pytest.param("from transformers import AutoModel\nimport x2vlm.inference", id="after", marks=pytest.mark.slow),
    ],
)
def test_importing_the_package_is_all_that_is_needed(folder, order, project_root):
    """And costs nothing where transformers is not used; before or after it, and only its lazy names may be there."""
    code = (
        f"import sys\n{order}\nassert not {{'torch', 'timm'}} & set(sys.modules), 'heavy'\n"
        "from transformers import AutoProcessor, AutoModel\n"
        f"print(type(AutoModel.from_pretrained({str(folder)!r})).__name__)\n"
    )
    if "AutoModel" in order:
        code = code.replace("assert not {'torch', 'timm'} & set(sys.modules), 'heavy'\n", "")
    done = subprocess.run([sys.executable, "-c", code], cwd=project_root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["X2VLMModel"]


class Hub(BaseHTTPRequestHandler):
    """As much of a hub's HTTP interface as uploading and downloading one repository takes."""

    files: dict[str, bytes] = {}

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        if path.endswith("/repos/create"):
            if json.loads(body)["name"] == "closed":
                return self._answer({"error": "no"}, 403)
            return self._answer({"url": f"http://{self.headers['Host']}/someone/small", "name": "someone/small"})
        if "/preupload/" in path:
            names = [item["path"] for item in json.loads(body)["files"]]
            modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            return self._answer({"files": modes})
        if "/commit/" in path:
            for line in body.decode().splitlines():
                if (item := json.loads(line))["key"] == "file":
                    self.files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            url = f"http://{self.headers['Host']}/someone/small/commit/{COMMIT}"
            return self._answer({"commitUrl": url, "commitOid": COMMIT, "pullRequestUrl": None})
        return self._answer({})

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        name = path.rpartition("/")[2]
        if path.startswith("/api/models/someone/small"):
            if "/tree/" in path:
                listing = [{"type": "file", "path": key, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                           for key, data in self.files.items()]  # fmt: skip
                return self._answer(listing)
            names = [{"rfilename": key} for key in self.files]
            return self._answer({"id": "someone/small", "modelId": "someone/small", "sha": COMMIT, "siblings": names})
        if "/resolve/" in path and name in self.files:
            data = self.files[name]
            headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
            return self._send(data, 200, headers)
        return self._answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET

    def _answer(self, value, status=200, headers=None):
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json"} | (headers or {}))

    def _send(self, data, status, headers):
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    handler = type("OneHub", (Hub,), {"files": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield handler, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def on_hub(address, folder, code, tmp_path, project_root):
    environment = os.environ | {
        "HF_ENDPOINT": address,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": "hf_of_a_test",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1",
    }
    imports = "import torch\nfrom x2vlm import inference\nfrom x2vlm.errors import X2VLMError\n"
    code = f"{imports}model = inference.load({str(folder)!r})\n{code}"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=project_root, env=environment, capture_output=True, text=True, check=False
    )


def test_a_model_goes_to_a_hub_and_comes_back(hub, folder, tmp_path, project_root):
    handler, address = hub
    code = """
print(inference.push_to_hub(model, "someone/small"))
again = inference.load("someone/small")
assert all(torch.equal(*pair) for pair in zip(model.model.parameters(), again.model.parameters(), strict=True))
from transformers import AutoModel, AutoProcessor
wrapped, processor = AutoModel.from_pretrained("someone/small"), AutoProcessor.from_pretrained("someone/small")
row = wrapped.get_text_features(**processor(text="a dog"))
assert torch.allclose(row, inference.embed_texts(model, ["a dog"]), atol=1e-5)
wrapped.push_to_hub("someone/small")
processor.push_to_hub("someone/small")
for name in ("someone/closed", "a b/c"):
    try:
        inference.push_to_hub(model, name)
    except X2VLMError as error:
        print(type(error).__name__)
"""
    done = on_hub(address, folder, code, tmp_path, project_root)
    assert done.returncode == 0, done.stderr[-3000:]
    errors = [SourceUnavailable.__name__, ConfigError.__name__]
    assert done.stdout.split() == [f"{address}/someone/small/commit/{COMMIT}", *errors]
    for path in folder.iterdir():
        assert handler.files[path.name] == path.read_bytes()
