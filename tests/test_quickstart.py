"""`zoo quickstart`: its files, its page, and the commands that it ends with."""

import base64
import contextlib
import io
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from fixtures import NAME, bundle, compilation_cache, run, tiny_preset, tiny_release
from PIL import Image

import zoo
from zoo import quickstart
from zoo.cli import main
from zoo.data.transforms import eval_transform, read_image
from zoo.presets import RELEASES

__all__ = ["compilation_cache", "tiny_preset", "tiny_release"]  # fixtures


@pytest.fixture(scope="module")
def result(tiny_release, tmp_path_factory):
    """Runs it in an empty folder, where the tests then are: what it printed."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        bundle(tiny_release, patch)
        patch.chdir(tmp_path_factory.mktemp("user"))
        assert main(["quickstart"]) == 0
        yield out.getvalue()


def commands_in(out):
    return [shlex.split(line) for line in out.splitlines() if line.startswith(("  zoo ", "  jupyter "))]


class Page(HTMLParser):
    """Collects tags, and checks that each one is closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_files_and_page(result):
    folder = Path("quickstart")
    assert (folder / "quickstart.png").is_file()
    assert sorted(p.name for p in (folder / "photos").iterdir()) == sorted(quickstart.PHOTOS[: quickstart.COPIED])
    text = (folder / "quickstart.html").read_text(encoding="utf-8")
    page = Page(text)
    links = [value for _, attrs in page.tags for key, value in attrs.items() if key in ("src", "href")]
    assert len(links) == 3 * len(quickstart.PHOTOS) and all(link.startswith("data:image/") for link in links)
    assert not re.search(r"https?://|url\(|@import|<script|<link|\$\w", text)
    images = [Image.open(io.BytesIO(base64.b64decode(link.split(",")[1]))) for link in links]
    assert {image.size for image in images} == {(384, 384)}
    photo = eval_transform(read_image(folder / "photos" / quickstart.PHOTOS[0]), 64)
    error = np.abs(np.asarray(images[0].resize((64, 64), Image.Resampling.BOX), float) - photo).mean()
    assert error < 8, "the first picture is not the first photo"
    for command in commands_in(result):
        assert shlex.join(command) in page.text


def test_numbers(result):
    """The ids on stdout and all ids of the page are those of the API."""
    photos = [Path(zoo.__file__).parent / "data" / "photos" / name for name in quickstart.PHOTOS]
    ids = np.asarray(zoo.load(NAME).encode(np.stack([eval_transform(read_image(p), 64) for p in photos])).ids)
    printed = [line.split("ids ")[1].split()[:8] for line in result.splitlines() if "ids " in line and " dB" in line]
    assert np.array(printed, int).tolist() == ids[:, :8, 0].tolist() and result.count("48 bits") >= len(photos)
    page = Path("quickstart/quickstart.html").read_text(encoding="utf-8")
    shown = [re.findall(r"<span>(\d+)</span>", row) for row in page.split('class="ids"')[1:]]
    assert np.array(shown, int).tolist() == ids[:, :, 0].tolist()


def test_next_commands_encode(result):
    command = commands_in(result)[0]
    assert command[:2] == ["zoo", "encode"]
    assert main(command[1:]) == 0
    assert np.load(command[command.index("--out") + 1])["ids"].shape == (1, 8, 1)


@pytest.mark.slow
def test_next_commands_train(result):
    command = commands_in(result)[1]
    assert command[:2] == ["zoo", "train"]
    assert main(command[1:]) == 0
    release = Path(command[command.index("--workdir") + 1]) / "release"
    assert zoo.info(release)["steps"] == 20
    assert zoo.load(release).spec == zoo.load(command[command.index("--init") + 1]).spec


@pytest.mark.long  # CI runs the same notebook by itself
@pytest.mark.skipif(not (RELEASES / NAME).is_dir(), reason="the release is not bundled yet")
def test_next_commands_notebook(result):
    """Opening it and running all cells, as its user would, with the model that is really bundled."""
    assert quickstart._notebook(), "the notebook is not shipped"
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    command = commands_in(result)[2]
    assert command[:2] == ["jupyter", "lab"]
    notebook = nbformat.read(command[2], as_version=4)
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": "."}}).execute()


def test_in_a_folder_of_the_user(tiny_preset, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my tokens" / "photos").mkdir(parents=True)
    (tmp_path / "my tokens" / "photos" / "mine.txt").write_text("mine")
    status, out, err = run(capsys, "quickstart", "--out", "my tokens")
    assert (status, err) == (0, [])
    assert "my tokens/photos/chelsea_cat.jpg" in commands_in(out)[0]
    assert (tmp_path / "my tokens" / "photos" / "mine.txt").read_text() == "mine"
