"""The service as its users meet it: over HTTP, by many at once, by people who mean it harm, and in a browser."""

from __future__ import annotations

import io
import os
import shutil
import socket
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from run_helpers import COLOURS
from serve_helpers import running_service

from vit_finetune import Predictor, PreprocessSpec, create_model, export_model_folder
from vit_finetune.common.errors import RequestError
from vit_finetune.serve import Limits, serve

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def solid(colour: tuple[int, int, int], form: str = "PNG", size: tuple[int, int] = (40, 30)) -> bytes:
    """Return a file of one colour."""
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, form)
    return file.getvalue()


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model whose head was fitted to tell three colours apart, with a temperature."""
    torch.manual_seed(0)
    sizes = {"img_size": 32, "depth": 1, "embed_dim": 48, "num_classes": 3}
    model, spec = create_model("vit_tiny_patch16_224", **sizes).eval(), PreprocessSpec(input_size=(3, 32, 32))
    raw = Predictor(model, preprocess=spec, class_names=list(COLOURS))
    features = torch.from_numpy(raw.embed([Image.new("RGB", (32, 32), colour) for colour in COLOURS.values()]))
    with torch.no_grad():
        model.head.weight.copy_(torch.linalg.lstsq(features, 12 * torch.eye(3)).solution.T)
        model.head.bias.zero_()
    folder = tmp_path_factory.mktemp("served") / "colours"
    return export_model_folder(model, folder, preprocess=spec, class_names=list(COLOURS), temperature=2.0)


@pytest.fixture(scope="module")
def address(model_folder: Path) -> Iterator[str]:
    with running_service(
        model_folder, "--max-megabytes", "0.5", "--max-megapixels", "1", "--max-pictures", "4"
    ) as found:
        yield found


def test_service__answers_as_the_predictor(address: str, model_folder: Path) -> None:
    """One picture and a batch get the class and the calibrated probabilities that `Predictor` gives."""
    predictor = Predictor(model_folder)
    expected = predictor(Image.new("RGB", (40, 30), COLOURS["red"]))
    reply = httpx.post(f"{address}/predict", files={"image": ("r.png", solid(COLOURS["red"]))}, params={"top_k": 2})
    answer = reply.json()
    assert (reply.status_code, answer["label"], answer["abstained"]) == (200, "red", False)
    assert [row["probability"] for row in answer["top"]] == pytest.approx([p for _, p in expected.top(2)[0]], abs=1e-6)
    files = [("images", (f"{name}.jpg", solid(colour, "JPEG"))) for name, colour in COLOURS.items()]
    told = httpx.post(f"{address}/predict/batch", files=files).json()["predictions"]
    assert [row["label"] for row in told] == list(COLOURS)
    assert [row["file"] for row in told] == [f"{name}.jpg" for name in COLOURS]


def test_service__tells_what_it_is(address: str) -> None:
    """/healthz says that it is well, /model names classes, calibration and limits; unknown paths are JSON errors."""
    assert httpx.get(f"{address}/healthz").json() == {"status": "ok", "num_waiting": 0}
    facts = httpx.get(f"{address}/model").json()
    assert (facts["model"], facts["class_names"], facts["calibrated"]) == ("colours", list(COLOURS), True)
    assert facts["limits"]["max_pictures"] == 4
    assert httpx.get(f"{address}/nothing").json() == {"error": "Not Found"}


def test_service__concurrent_clients_each_get_their_own_answer(address: str) -> None:
    """Eight clients at once, 48 requests in all: every answer is about the picture that was sent."""
    names = list(COLOURS) * 16

    def ask(name: str) -> str:
        answer = httpx.post(f"{address}/predict", files={"image": ("x.png", solid(COLOURS[name]))}, timeout=60)
        return str(answer.json()["label"])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, names)) == names


def bomb(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes whose header promises that many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("name", "data", "status", "told"),
    [
        ("page.jpg", b"<html><script>alert(1)</script></html>", 415, "page.jpg is not a picture"),
        ("figure.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415, "not a picture"),
        ("empty.png", b"", 415, "not a picture"),
        ("cut.png", solid((1, 2, 3), size=(300, 300))[:120], 415, "cannot read"),
        ("bomb.png", bomb(2_000, 2_000), 413, "2000 x 2000 pixels; at most 1 million"),
        ("bomb.png", bomb(60_000, 60_000), 413, "bomb.png"),
        ("huge.png", bytes(600_000), 413, "larger than 0.5 MB"),
    ],
)
def test_service__refuses_hostile_uploads(address: str, name: str, data: bytes, status: int, told: str) -> None:
    """What is no picture, or a bomb, or too large is refused with one sentence in JSON, and the service lives on."""
    reply = httpx.post(f"{address}/predict", files={"image": (name, data)})
    assert (reply.status_code, told in reply.json()["error"]) == (status, True), reply.text
    assert httpx.get(f"{address}/healthz").status_code == 200


def test_service__counts_a_body_that_does_not_tell_its_length(address: str) -> None:
    """A chunked body, which has no declared length, is refused at the limit."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as client:
        client.sendall(
            b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        )
        head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="x.png"\r\n\r\n'
        for data in (head, *[bytes(100_000)] * 5, bytes(10)):  # never finished: the limit alone ends it
            client.sendall(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        assert client.recv(12) == b"HTTP/1.1 413"


def test_service__refuses_too_many_pictures_and_missing_ones(address: str) -> None:
    """More pictures than the limit, no picture, and a top_k below 1 are refused in words."""
    five = [("images", ("x.png", solid((1, 2, 3))))] * 5
    assert httpx.post(f"{address}/predict/batch", files=five).status_code == 413
    assert "image" in httpx.post(f"{address}/predict").json()["error"]
    reply = httpx.post(f"{address}/predict?top_k=0", files={"image": ("x.png", solid((1, 2, 3)))})
    assert (reply.status_code, "top_k" in reply.json()["error"]) == (422, True)


def test_service__answers_to_its_own_name_only(address: str) -> None:
    """A page that reaches a local service under another name (DNS rebinding) gets nothing."""
    assert httpx.get(f"{address}/model", headers={"Host": "evil.example"}).status_code == 400


def test_service__says_when_it_is_too_slow(model_folder: Path) -> None:
    """An answer that takes longer than allowed is 504."""
    with running_service(model_folder, "--timeout-seconds", "0.000001") as found:
        reply = httpx.post(f"{found}/predict", files={"image": ("x.png", solid((1, 2, 3)))}, timeout=60)
    assert (reply.status_code, "no answer within" in reply.json()["error"]) == (504, True)


def test_serve__a_port_in_use_and_limits_without_room_are_refused(model_folder: Path) -> None:
    """An address that is taken is one clear line, and so is a limit of zero."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(RequestError, match="give another --host or --port"):
            serve(Predictor(model_folder), name="x", port=taken.getsockname()[1])
    with pytest.raises(RequestError, match="max_pictures is 0"):
        Limits(max_pictures=0)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_page__drop_a_picture_and_see_its_class(address: str, tmp_path: Path) -> None:
    """In Chromium, wide light and narrow dark: a dropped or chosen picture shows its class; nothing else loads.

    VIT_FINETUNE_SCREENSHOTS names a folder for pictures of the page.
    """
    playwright = pytest.importorskip("playwright.sync_api")
    shots = os.environ.get("VIT_FINETUNE_SCREENSHOTS")
    red = tmp_path / "red.png"
    pixels = np.random.default_rng(0).normal(COLOURS["red"], 25, (240, 320, 3))
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(red)
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=arguments)
        for scheme, width in (("light", 1200), ("dark", 375)):
            page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 800})
            asked: list[str] = []
            errors: list[str] = []
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.on("pageerror", lambda error, errors=errors: errors.append(str(error)))
            page.on("console", lambda line, errors=errors: errors.append(line.text) if line.type == "error" else None)
            page.goto(address)
            page.get_by_text("3 classes, probabilities calibrated").wait_for()
            if shots:
                page.screenshot(path=Path(shots) / f"serve-{scheme}-{width}-empty.png", full_page=True)
            if scheme == "light":
                drop_file(page, red)
            else:
                page.locator("#file").set_input_files(red)
            page.locator("#label").wait_for(state="visible")
            assert page.locator("#label").inner_text() == "red"
            assert page.locator("#top li").count() == 3
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            if shots:
                page.screenshot(path=Path(shots) / f"serve-{scheme}-{width}.png", full_page=True)
            assert not errors
            page.locator("#file").set_input_files({"name": "no.jpg", "mimeType": "image/jpeg", "buffer": b"<html>"})
            page.locator("#error").wait_for(state="visible")
            assert "no.jpg is not a picture" in page.locator("#error").inner_text()
            assert all(url.startswith((address, "blob:", "data:")) for url in asked), asked
            page.close()
        browser.close()


def drop_file(page: object, path: Path) -> None:
    """Drop a file onto the page as a mouse does."""
    transfer = page.evaluate_handle(
        """bytes => { const transfer = new DataTransfer();
        transfer.items.add(new File([new Uint8Array(bytes)], "red.png", {type: "image/png"})); return transfer; }""",
        list(path.read_bytes()),
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})
