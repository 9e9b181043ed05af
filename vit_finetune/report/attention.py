"""What the model looked at: attention rollout over the crop that it saw, for the few pictures of a report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from PIL import Image

from vit_finetune.common.errors import VitFinetuneError
from vit_finetune.pages.thumbnails import thumbnail
from vit_finetune.report.run_folder import RunFolder

if TYPE_CHECKING:
    from torch import Tensor

    from vit_finetune.predictor import Predictor

_MOST_BYTES = 1 << 30  # of the attention maps of the pictures that are drawn together
_MOST_TOGETHER = 8


class Looking:
    """Draws the attention of a run's model over pictures.

    Args:
        run: its folder; the model is loaded when the first picture comes.
        is_wanted: False draws nothing.
    """

    def __init__(self, run: RunFolder, *, is_wanted: bool = True) -> None:
        self._run = run
        self._predictor: Predictor | None = None
        self._crops: dict[int, Image.Image | Tensor] = {}
        self._reason = "" if is_wanted else "attention was not asked for"

    @property
    def told(self) -> str:
        """What the overlays are, or why there are none."""
        if self._reason:
            return f"No attention is shown: {self._reason}."
        return (
            "Beside each picture: the crop that the model saw, brighter where its attention went (attention rollout)."
        )

    def keep(self, row: int, image: Image.Image) -> None:
        """Keep of a picture what the model sees of it, to be drawn with others.

        Args:
            row: its number, for `drawn`.
            image: in mode RGB.
        """
        if not self._reason:
            with self._excused():
                self._predictor = self._predictor or _loaded(self._run)
                self._crops[row] = _crop(self._predictor, image)

    def drawn(self, size: int) -> dict[int, str]:
        """Return the addresses of what was kept, by row, with the model's attention over it; none where none can be.

        Args:
            size: the longer side of a drawing, in pixels.
        """
        found: dict[int, str] = {}
        if self._predictor is not None and not self._reason:
            with self._excused():
                drawings = _drawn(self._predictor, list(self._crops.values()))
                found = {row: thumbnail(drawing, size) for row, drawing in zip(self._crops, drawings, strict=True)}
        self._crops = {}
        return found

    @contextmanager
    def _excused(self) -> Iterator[None]:
        """Take an error for the reason why there are no overlays."""
        try:
            yield
        except (VitFinetuneError, NotImplementedError, AttributeError) as error:
            self._reason = str(error) or "this network has no attention maps"


def _loaded(run: RunFolder) -> Predictor:
    """Return the run's model where its maps fit into memory."""
    from vit_finetune.common.errors import RequestError
    from vit_finetune.predictor import Predictor

    device = (run.config.get("run") or {}).get("device", "auto")
    predictor = Predictor(run.path, device=None if device == "auto" else device)
    if _bytes_of_maps(predictor) > _MOST_BYTES:
        raise RequestError("the maps of one picture would take more than a gigabyte")
    return predictor


def _crop(predictor: Predictor, image: Image.Image) -> Image.Image | Tensor:
    """Return what the model sees of a picture."""
    from vit_finetune.data.transforms import build_eval_crop

    crop: Image.Image | Tensor = build_eval_crop(predictor.preprocess)(image)
    return crop


def _bytes_of_maps(predictor: Predictor) -> int:
    """Return what the maps of one picture take."""
    config = predictor.model.config
    return 4 * config.depth * config.num_heads * config.num_tokens**2


def _drawn(predictor: Predictor, crops: Sequence[Image.Image | Tensor]) -> Iterator[Image.Image]:
    """Yield crops that the model sees, with attention rollout over them."""
    import torch
    from torchvision.transforms.v2.functional import to_pil_image

    from vit_finetune.data.transforms import build_eval_rest
    from vit_finetune.evaluation.explain import attention_rollout, overlay
    from vit_finetune.models import attention_maps

    rest, model = build_eval_rest(predictor.preprocess), predictor.model
    together = min(_MOST_TOGETHER, _MOST_BYTES // _bytes_of_maps(predictor))
    for first in range(0, len(crops), together):
        some = crops[first : first + together]
        x = torch.stack([rest(crop) for crop in some]).to(predictor.device)
        with torch.inference_mode():
            heats = attention_rollout(attention_maps(model, x), num_prefix_tokens=model.num_prefix_tokens)
        for crop, heat in zip(some, heats, strict=True):
            shown = crop if isinstance(crop, Image.Image) else to_pil_image(crop)
            yield overlay(shown, heat.reshape(model.config.grid_size).cpu().numpy())
