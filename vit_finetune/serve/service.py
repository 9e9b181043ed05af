"""The service's routes. Imported only by `serve`, since the web framework is an extra.

Every refusal is JSON: `{"error": "..."}`.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from vit_finetune.predictor import Predictor
from vit_finetune.serve.body_limit import BodyLimit
from vit_finetune.serve.desk import Desk
from vit_finetune.serve.limits import Limits

TopK = Annotated[int, Query(ge=1, le=1000, description="Classes to list, best first.")]


def create_app(predictor: Predictor, *, name: str, limits: Limits, allowed_hosts: Sequence[str] = ("*",)) -> FastAPI:
    """Return the service as an ASGI application.

    Args:
        predictor: the model.
        name: what the page calls it.
        limits: what a request may ask for.
        allowed_hosts: of the `Host` header; a loopback service names its own, so that no web page can reach it under
            another name (DNS rebinding).
    """
    app = FastAPI(title=f"vit-finetune: {name}", docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimit, max_bytes=limits.max_bytes)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(allowed_hosts))
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _misread)
    desk, facts = Desk(predictor, limits), _facts(predictor, name, limits)
    page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    headers = _page_headers(page)

    @app.get("/", include_in_schema=False)
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page, headers=headers)

    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        return {"status": "ok", "num_waiting": desk.num_waiting}

    @app.get("/model")
    async def model() -> dict[str, Any]:
        return facts

    @app.post("/predict")
    async def predict(image: UploadFile, top_k: TopK = 5) -> dict[str, Any]:
        return (await desk.answer([image], top_k))[0]

    @app.post("/predict/batch")
    async def predict_batch(images: list[UploadFile], top_k: TopK = 5) -> dict[str, Any]:
        return {"predictions": await desk.answer(images, top_k)}

    return app


def _facts(predictor: Predictor, name: str, limits: Limits) -> dict[str, Any]:
    """Return what a client may want to know of the model."""
    return {
        "model": name,
        "class_names": list(predictor.class_names),
        "calibrated": predictor.is_calibrated,
        "min_probability": predictor.min_probability,
        "several_labels": predictor.thresholds is not None,
        "limits": vars(limits),
    }


async def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": str(error.detail)}, error.status_code, headers=error.headers)


async def _misread(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    told = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
    return JSONResponse({"error": told}, 422)


def _page_headers(page: str) -> dict[str, str]:
    """Return headers that let the page run its own script and style, speak to this service, and nothing else."""
    hashes = {}
    for kind in ("script", "style"):
        text = re.search(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
        assert text is not None
        digest = base64.b64encode(hashlib.sha256(text[1].encode()).digest()).decode()
        hashes[kind] = f"'sha256-{digest}'"
    policy = (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; img-src blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
