"""Where requests wait for the model: one thread runs it, in the order in which they came.

More than a few waiting are sent away rather than piled up. A request that took too long has its answer thrown away,
but its place is free only once the model is done with it, so slow work cannot pile up behind the limit either.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from fastapi import HTTPException, UploadFile
from PIL import Image

from vit_finetune.common.errors import RequestError
from vit_finetune.predictor import Predictor
from vit_finetune.serve.limits import Limits
from vit_finetune.serve.uploads import TooLarge, open_picture

Answers = list[dict[str, Any]]


class Desk:
    """Where requests wait for the model.

    Args:
        predictor: the model.
        limits: what a request may ask for.
    """

    def __init__(self, predictor: Predictor, limits: Limits) -> None:
        self.predictor, self.limits = predictor, limits
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self.jobs: set[Future[Answers]] = set()

    @property
    def num_waiting(self) -> int:
        """Requests that the model has not finished."""
        return sum(not job.done() for job in self.jobs)

    async def answer(self, files: Sequence[UploadFile], top_k: int) -> Answers:
        """Return the predictions of uploaded files, in order.

        Args:
            files: the uploads.
            top_k: classes to list.

        Raises:
            HTTPException: too many pictures or requests, something that is no picture, or it takes too long.
        """
        if len(files) > self.limits.max_pictures:
            raise HTTPException(413, f"{len(files)} pictures; at most {self.limits.max_pictures} are taken at a time")
        uploads = [(file.filename or "the picture", await file.read()) for file in files]
        self.jobs = {job for job in self.jobs if not job.done()}
        if len(self.jobs) >= self.limits.max_waiting:
            raise HTTPException(503, "too many requests are waiting; try again", headers={"Retry-After": "1"})
        job = self.thread.submit(self._predict, uploads, top_k)
        self.jobs.add(job)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(job), self.limits.timeout_seconds)
        except TimeoutError:
            raise HTTPException(504, f"no answer within {self.limits.timeout_seconds:g} seconds; try again") from None
        except TooLarge as error:
            raise HTTPException(413, str(error)) from None
        except RequestError as error:
            raise HTTPException(415, str(error)) from None

    def _predict(self, uploads: Sequence[tuple[str, bytes]], top_k: int) -> Answers:
        """Open all pictures, then decode and classify a batch at a time."""
        pictures = [open_picture(data, name=name, max_pixels=self.limits.max_pixels) for name, data in uploads]
        size = self.predictor.batch_size
        answers = [
            answer
            for start in range(0, len(pictures), size)
            for answer in self._classify(pictures[start : start + size], top_k)
        ]
        return [{"file": name, **answer} for (name, _), answer in zip(uploads, answers, strict=True)]

    def _classify(self, pictures: Sequence[Image.Image], top_k: int) -> Answers:
        found = self.predictor(pictures)
        rows = zip(found.labels, found.label_sets, found.abstained.tolist(), found.top(top_k), strict=True)
        return [
            {
                "label": label,
                "labels": list(several),
                "abstained": abstained,
                "top": [{"label": other, "probability": value} for other, value in best],
            }
            for label, several, abstained, best in rows
        ]
