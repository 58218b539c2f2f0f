"""Published weights: the real hub client against a server on loopback, with the tensors of a tiny model."""

import hashlib
import http.server
import json
import shutil
import threading
import time

import huggingface_hub.constants
import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny import CONFIGS, images, random_module

import zoo
from zoo import presets, pretrained
from zoo.errors import WeightsError
from zoo.tokenizer import Tokenizer

REPOSITORY, REVISION, COMMIT = "someone/tiny", "v1", "c" * 40
NAME = "titok_tiny.hub"
FILES = ("config.json", "model.safetensors")
PUBLISHED = {
    "experiment": {"output_dir": "tiny"},
    "model": {
        "vq_model": {
            "codebook_size": 32,
            "token_size": 4,
            "use_l2_norm": True,
            "commitment_cost": 0.25,
            "vit_enc_model_size": "t16x2h2",
            "vit_dec_model_size": "t16x2h2",
            "vit_enc_patch_size": 8,
            "vit_dec_patch_size": 8,
            "num_latent_tokens": 4,
            "finetune_decoder": False,
            "is_legacy": False,
        }
    },
    "dataset": {"preprocessing": {"crop_size": 16}},
}


class Hub:
    """Serves `files` as the hub serves a repository. `requests` are (method, file, Range).

    cuts: how many times a download of the weights breaks off in the middle.
    dies: whether nothing answers after that.
    """

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.cuts, self.dies = 0, False
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                self.answer()

            def do_GET(self):
                data, start = self.answer()
                if data and self.path.endswith("safetensors") and hub.cuts:
                    hub.cuts -= 1
                    self.wfile.write(data[start : start + (len(data) - start) // 2])
                    self.close_connection = True
                    if hub.dies:
                        hub.close()
                elif data:
                    self.wfile.write(data[start:])

            def answer(self):
                asked = self.headers.get("Range")
                start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
                repository, _, rest = self.path[1:].partition("/resolve/")
                revision, _, name = rest.partition("/")
                hub.requests.append((self.command, name or self.path, asked))
                error = "RepoNotFound" if repository != REPOSITORY else None
                error = error or ("RevisionNotFound" if revision not in (REVISION, COMMIT) else None)
                error = error or ("EntryNotFound" if name not in hub.files else None)
                if error:
                    self.send_response(404)
                    self.send_header("X-Error-Code", error)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return None, 0
                data = hub.files[name]
                self.send_response(206 if asked else 200)
                self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("Content-Length", str(len(data) - start))
                self.end_headers()
                return data, start

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def downloads(self) -> list[tuple[str, str | None]]:
        """Of files; the client also asks for its own settings."""
        return [(name, asked) for method, name, asked in self.requests if method == "GET" and name in FILES]

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(random_module(CONFIGS["titok_vq"]), name=NAME, family="titok")


@pytest.fixture(scope="module")
def files(tokenizer, tmp_path_factory):
    file = tmp_path_factory.mktemp("published") / "model.safetensors"
    save_file(zoo.convert.to_reference(tokenizer), file)
    return {"config.json": json.dumps(PUBLISHED).encode(), "model.safetensors": file.read_bytes()}


@pytest.fixture
def hub(files, tmp_path, monkeypatch):
    hub = Hub()
    hub.files = dict(files)
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what is written before a connection breaks
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "zoo"))
    publish(monkeypatch)
    yield hub
    hub.close()


def publish(monkeypatch, **changes):
    """Registers the preset."""
    facts = {
        "name": NAME,
        "family": "titok",
        "config": CONFIGS["titok_vq"],
        "parameters": 1,
        "licence": "MIT",
        "paper": "0000.00000",
        "repository": REPOSITORY,
        "file": "model.safetensors",
        "revision": REVISION,
        "alternative": ("someone/bins", "tiny.bin"),
    }
    preset = presets.Preset(**facts | changes)
    monkeypatch.setattr(presets.family("titok"), "PRESETS", (preset,))


def one_line(*words: str) -> str:
    with pytest.raises(WeightsError) as caught:
        zoo.load(NAME)
    text = str(caught.value)
    assert "\n" not in text and all(word in text for word in words), text
    return text


def test_downloads_once_converts_and_caches(hub, tokenizer, tmp_path):
    loaded = zoo.load(NAME)
    x = images(2)
    assert np.array_equal(loaded.encode(x).ids, tokenizer.encode(x).ids)
    assert hub.downloads() == [("config.json", None), ("model.safetensors", None)]
    about = zoo.info(tmp_path / "zoo" / NAME)
    assert about["source"]["sha256"] == hashlib.sha256(hub.files["model.safetensors"]).hexdigest()
    hub.requests.clear()
    zoo.load(NAME)
    assert not hub.requests


def test_a_cut_download_goes_on_where_it_was(hub, tokenizer):
    hub.cuts = 2
    assert np.array_equal(zoo.load(NAME).encode(images(2)).ids, tokenizer.encode(images(2)).ids)
    first, second, third = [asked for name, asked in hub.downloads() if name == "model.safetensors"]
    assert first is None and second and third
    assert 0 < int(second[6:-1]) < int(third[6:-1]) < len(hub.files["model.safetensors"])


def test_missing_things_are_named(hub, monkeypatch):
    del hub.files["model.safetensors"]
    one_line(
        "no such file", "model.safetensors of someone/tiny", "tiny.bin of someone/bins", f"zoo convert {NAME} FILE"
    )
    publish(monkeypatch, revision="v2")
    one_line("no revision v2")
    publish(monkeypatch, repository="someone/else")
    one_line("no such repository", "model.safetensors of someone/else")


def test_a_wrong_hash_is_refused_and_removed(hub, monkeypatch, tmp_path):
    publish(monkeypatch, sha256="0" * 64)
    one_line("instead of " + "0" * 64, "load it again")
    publish(monkeypatch)
    zoo.load(NAME)
    (weights,) = (tmp_path / "hub").rglob("model.safetensors")
    shutil.rmtree(tmp_path / "zoo")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.resolve().write_bytes(data)  # a damaged cache
    one_line("instead of", "load it again")
    hub.requests.clear()
    zoo.load(NAME)
    assert [name for name, _ in hub.downloads()] == ["model.safetensors"]


@pytest.mark.parametrize("begun", [False, True])
def test_a_server_that_is_gone(hub, monkeypatch, begun):
    """Before the first request, or in the middle of the weights."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the client's tries
    if begun:
        hub.cuts, hub.dies = 1, True
    else:
        hub.close()
    one_line("cannot download", f"zoo convert {NAME} FILE OUT")
    assert (("model.safetensors", None) in hub.downloads()) == begun


def test_no_network(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    one_line("the hub cannot be reached")
    assert not hub.requests


def test_another_config_is_refused(hub, tmp_path):
    changed = json.loads(json.dumps(PUBLISHED))
    changed["model"]["vq_model"]["use_l2_norm"] = False  # no tensor would show it
    hub.files["config.json"] = json.dumps(changed).encode()
    one_line("config.json", f"another model than {NAME}")
    hub.files["config.json"] = b"{}"
    (tmp_path / "w").mkdir()
    for name, data in hub.files.items():
        (tmp_path / "w" / name).write_bytes(data)
    with pytest.raises(WeightsError, match="not a published config of titok"):
        pretrained.convert(NAME, tmp_path / "w" / "model.safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()
