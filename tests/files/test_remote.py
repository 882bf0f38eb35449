from __future__ import annotations

import functools
import http.server
import io
import pickle
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import conv_model, save
from PIL import Image

from trtcal.errors import BackendError, DataError
from trtcal.files.remote import Remote, is_url, shown
from trtcal.samples.batches import Batches
from trtcal.samples.preprocess import preset
from trtcal.samples.sources import ImageFolder, holds_arrays, open_source
from trtcal.spec import InputSpec

PIXELS = InputSpec("image", np.dtype(np.float32), (3, 8, 8))
TO_UNIT = preset("0-1", size=(8, 8))


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def npz(seed: int, rows: int = 3) -> bytes:
    buffer = io.BytesIO()
    x = np.random.default_rng(seed).normal(size=(rows, 3, 8, 8)).astype(np.float32)
    np.savez(buffer, image=x, labels=np.arange(rows))
    return buffer.getvalue()


FILES = {
    "photos/cat/1.png": png(1),
    "photos/cat/2.png": png(2),
    "photos/dog/1.png": png(3),
    "photos/.hidden.png": b"",
    "photos/cat/notes.txt": b"-",
    "arrays/a.npz": npz(1),
    "arrays/b.npz": npz(2),
    "torn/1.png": png(1)[:200],
    "text/readme.txt": b"-",
}


@pytest.fixture
def here(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "data"


@pytest.fixture
def memory() -> Iterator[str]:
    fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed: pip install 'trtcal[remote]'")
    fs = fsspec.filesystem("memory")
    for name, content in FILES.items():
        fs.pipe_file(f"/bucket/{name}", content)
    yield "memory://bucket"
    fs.rm("/bucket", recursive=True)


@pytest.fixture
def web(here: Path) -> Iterator[str]:
    pytest.importorskip("fsspec", reason="fsspec is not installed: pip install 'trtcal[remote]'")
    pytest.importorskip("aiohttp", reason="aiohttp is not installed: pip install 'trtcal[remote]'")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(here))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(params=["memory", "web"])
def url(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("s3://bucket/photos", True),
        ("HF://datasets/x/y", True),
        ("zip://a.npy::https://example.com/b.zip", True),
        ("photos", False),
        (r"C:\photos", False),
        ("c:/photos", False),
        ("load.py:function", False),
        (Path("s3:/x"), False),
    ],
)
def test_a_url_is_told_from_a_path(path: Any, expected: bool) -> None:
    assert is_url(path) is expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://user:secret@host/a?X-Amz-Signature=1234", "https://host/a"),
        ("s3://bucket/a@b/c", "s3://bucket/a@b/c"),
        ("zip://x.npy::https://host/b.zip?token=5", "zip://x.npy::https://host/b.zip"),
        ("https://user:pass@word@host/a", "https://host/a"),
        ("s3://key:sec/ret@bucket/a", "s3://bucket/a"),
        ("https://host/a?sig=se:cr#et", "https://host/a"),
        ("zip://x.npz::https://u:p@host/b?sig=se:cret", "zip://x.npz::https://host/b"),
        ("simplecache::https://host/a?sig=5::x", "simplecache::https://host/a::x"),
        ("http://host:8080/a@b", "http://host:8080/a@b"),
    ],
)
def test_what_is_secret_in_a_url_is_shown_to_nobody(url: str, expected: str) -> None:
    assert shown(url) == expected


def test_pictures_behind_a_url_are_those_of_the_folder(url: str, here: Path) -> None:
    local = ImageFolder(here / "photos", TO_UNIT, input_name="image")
    source: Any = open_source(f"{url}/photos", inputs=[PIXELS], preprocess=TO_UNIT)
    assert [source.name(i) for i in range(len(source))] == ["cat/1.png", "cat/2.png", "dog/1.png"]
    for one, two in zip(Batches(local, 2), Batches(source, 2), strict=True):
        assert np.array_equal(one["image"], two["image"])
    assert Batches(source, 2).labels == (0, 0, 1)
    assert source.key() == local.key()
    assert source.describe() == f"3 pictures of 2 classes (0 cat, 1 dog) in {url}/photos"


@pytest.mark.parametrize("where", ["arrays", "arrays/a.npz"])
def test_arrays_behind_a_url_are_those_of_the_folder(where: str, url: str, here: Path) -> None:
    local: Any = open_source(here / where, inputs=[PIXELS])
    assert holds_arrays(f"{url}/{where}")
    source: Any = open_source(f"{url}/{where}", inputs=[PIXELS])
    assert source.key() == local.key()
    assert source.describe() == local.describe().replace(str(here), url)
    assert Batches(source, 2).labels == Batches(local, 2).labels


@pytest.mark.parametrize("where", ["photos", "arrays", "arrays/a.npz"])
def test_a_source_travels_to_another_process(where: str, web: str) -> None:
    source: Any = open_source(f"{web}/{where}", inputs=[PIXELS], preprocess=TO_UNIT if where == "photos" else None)
    again = pickle.loads(pickle.dumps(source))
    del source
    assert np.isfinite(next(iter(Batches(again, 2)))["image"]).all()


@pytest.mark.parametrize(
    ("where", "preprocess", "message"),
    [
        ("nowhere", TO_UNIT, "/nowhere: no such file or folder"),
        ("photos", None, "/photos: pictures need a preset"),
        ("text", TO_UNIT, "/text: neither pictures nor .npy or .npz files; saw 1 .txt"),
        ("text/readme.txt", None, "/text/readme.txt: expected a folder, or a .npy or .npz file"),
        ("arrays", TO_UNIT, "/arrays: arrays are fed as they are"),
    ],
)
def test_what_is_wrong_is_said_with_the_url(where: str, preprocess: Any, message: str, url: str) -> None:
    with pytest.raises(DataError) as error:
        open_source(f"{url}/{where}", inputs=[PIXELS], preprocess=preprocess)
    assert str(error.value).startswith(f"{url}{message}")


def test_a_torn_picture_and_a_misshapen_array_are_named_by_their_urls(url: str) -> None:
    source: Any = open_source(f"{url}/torn", inputs=[PIXELS], preprocess=TO_UNIT)
    with pytest.raises(DataError, match=f"{url}/torn/1.png: cannot be decoded"):
        source.load(0)
    for where in ("arrays", "arrays/a.npz"):
        with pytest.raises(DataError, match=rf"^{url}/arrays/a.npz: no array 'other'"):
            open_source(f"{url}/{where}", inputs=[InputSpec("other", np.dtype(np.float32), (3, 8, 8))])


def test_a_server_that_is_not_there_is_a_data_error_that_names_the_url(web: str) -> None:
    with pytest.raises(DataError, match=r"^http://127.0.0.1:9/photos: cannot be read \(.*connect") as error:
        Remote("http://user:se:cret@127.0.0.1:9/photos?sig=se:cret")
    assert "cret" not in str(error.value)


def test_an_ftp_server_that_is_not_there_is_a_data_error_as_well(memory: str) -> None:
    with pytest.raises(DataError, match=r"^ftp://127.0.0.1:9/a.npz: cannot be read \(.*; check the URL and cred"):
        Remote("ftp://user:p@ss@127.0.0.1:9/a.npz")


def test_the_root_of_a_web_server_is_a_folder_and_a_query_is_no_extension(web: str) -> None:
    assert Remote(web).is_folder
    assert "arrays/a.npz" in Remote(f"{web}/").files()
    assert Remote(f"{web}/photos?v=1.2").is_folder
    assert not Remote(f"{web}/arrays/a.npz?sig=x/y").is_folder


def test_a_name_that_is_a_file_and_a_folder_is_an_error_that_names_it(memory: str) -> None:
    with pytest.raises(DataError, match=r"arrays/a\.npz/b\.npz: cannot be read"):
        Remote(f"{memory}/arrays").copy(["a.npz", "a.npz/b.npz"])


def test_a_kind_of_url_that_nobody_knows_is_named(memory: str) -> None:
    with pytest.raises(DataError, match=r"^nothing://x: Protocol not known"):
        Remote("nothing://x")


def test_without_fsspec_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(BackendError, match=r"^s3://b: URLs need fsspec: pip install 'trtcal\[remote\]'"):
        Remote("s3://b")


def test_a_name_that_leads_out_of_the_copy_is_refused(memory: str) -> None:
    with pytest.raises(DataError, match=r"\.\./x: leads out of the folder"):
        Remote(f"{memory}/arrays").copy(["../x"])


def test_a_cache_from_a_url_is_up_to_date_for_the_same_files_anywhere(url: str, here: Path, run: Any) -> None:
    save(conv_model(), here / "m.onnx")
    command = ("calibrate", here / "m.onnx", "--preset", "0-1", "-b", "2", "--data")
    code, _, err = run(*command, f"{url}/photos")
    assert code == 0, err
    code, _, err = run(*command, here / "photos")
    assert code == 0, err
    assert "up to date" in err
    code, _, err = run(*command, f"{url}/elsewhere")
    assert code == 2
    assert f"{url}/elsewhere: no such file or folder" in err
