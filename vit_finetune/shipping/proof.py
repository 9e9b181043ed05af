"""The proof of an export: the same pictures through our network and through what was written, opened by its reader."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vit_finetune.common.errors import WorkError
from vit_finetune.data.transforms import build_eval_transform
from vit_finetune.shipping.finished import Finished, ProofPictures
from vit_finetune.shipping.readers import Reader

PROOF_NAME = "proof.json"
_NUM_RANDOM = 4
_ALLOWED = 1e-3  # of float32 logits, at a scale of 1


@dataclass
class _Side:
    """Logits of ours beside those of an exported file."""

    ours: list[Tensor] = field(default_factory=list)
    theirs: list[Tensor] = field(default_factory=list)

    def add(self, ours: Tensor, theirs: Tensor) -> None:
        self.ours.append(ours)
        self.theirs.append(theirs.detach().float().cpu())

    def figures(self, finished: Finished, *, probabilities: bool) -> dict[str, Any]:
        ours, theirs = torch.cat(self.ours), torch.cat(self.theirs)
        agree = int((ours.argmax(1) == theirs.argmax(1)).sum())
        told: dict[str, Any] = {
            "num_pictures": len(ours),
            "max_abs_logit_difference": _largest(ours - theirs),
            "logit_scale": float(ours.abs().max()),
            "top1_agreement": agree / len(ours),
            "num_top1_agreeing": agree,
        }
        if probabilities:
            told["max_abs_probability_difference"] = _largest(
                _probabilities(ours, finished) - _probabilities(theirs, finished)
            )
        return told


@torch.inference_mode()
def prove(finished: Finished, reader: Reader, pictures: ProofPictures, *, target: str, exact: bool) -> dict[str, Any]:
    """Compare an exported file with the model that it was made from.

    Args:
        finished: the model.
        reader: the file, opened.
        pictures: to compare on; where there are none, random pixels are taken and the proof says so.
        target: what it was exported to.
        exact: the file computes in float32 what we compute: a larger difference than rounding is an error.

    Returns:
        JSON values: `network`, both sides on our prepared pixels, and `pictures`, each side with its own
        preprocessing, as far as the file has the one and the other; with classes known, `accuracy` of both.

    Raises:
        WorkError: the file computes something else.
    """
    network, whole = _Side(), _Side()
    labels: list[int] = []
    transform = build_eval_transform(finished.preprocess)
    for picture, label in pictures.decoded():
        pixels = transform(picture)[None]
        ours = finished.model(pixels).float()
        if reader.of_pixels is not None:
            network.add(ours, reader.of_pixels(pixels))
        if reader.of_picture is not None:
            whole.add(ours, reader.of_picture(picture))
        labels.append(label)
    told: dict[str, Any] = {"target": target, "opened_by": reader.name, "pictures_from": pictures.told}
    if not len(pictures):
        told["network_on_random_pixels"] = _on_random_pixels(finished, reader, network, whole)
    else:
        if network.ours:
            told["network"] = network.figures(finished, probabilities=False)
        if whole.ours:
            told["pictures"] = whole.figures(finished, probabilities=True)
        if min(labels) >= 0:
            told["accuracy"] = _accuracy(whole if whole.ours else network, labels)
    if exact and network.ours:
        _check(torch.cat(network.ours), torch.cat(network.theirs), reader.name)
    return told


def _on_random_pixels(finished: Finished, reader: Reader, network: _Side, whole: _Side) -> dict[str, Any]:
    """Compare on noise, which proves the arithmetic and says nothing of accuracy."""
    channels, height, width = finished.preprocess.input_size
    generator = torch.Generator().manual_seed(0)
    if reader.of_pixels is not None:
        pixels = torch.randn(_NUM_RANDOM, channels, height, width, generator=generator)
        network.add(finished.model(pixels).float(), reader.of_pixels(pixels))
        return network.figures(finished, probabilities=False)
    from PIL import Image

    assert reader.of_picture is not None
    transform = build_eval_transform(finished.preprocess)
    noise = torch.randint(0, 256, (_NUM_RANDOM, height, width, 3), generator=generator, dtype=torch.uint8)
    for pixels in noise:
        picture = Image.fromarray(np.asarray(pixels))
        whole.add(finished.model(transform(picture)[None]).float(), reader.of_picture(picture))
    return whole.figures(finished, probabilities=True)


def _accuracy(side: _Side, labels: list[int]) -> dict[str, float]:
    truth = torch.tensor(labels)
    return {
        name: float((torch.cat(values).argmax(1) == truth).double().mean())
        for name, values in (("ours", side.ours), ("exported", side.theirs))
    }


def _check(ours: Tensor, theirs: Tensor, name: str) -> None:
    difference, scale = _largest(ours - theirs), max(float(ours.abs().max()), 1.0)
    if not difference <= _ALLOWED * scale:
        raise WorkError(
            f"{name} computes something else: the largest difference of logits is {difference:.2e} at a scale of "
            f"{scale:.3g}; nothing was kept"
        )


def _probabilities(logits: Tensor, finished: Finished) -> Tensor:
    scaled = logits / (finished.temperature or 1.0)
    return scaled.softmax(1) if finished.thresholds is None else scaled.sigmoid()


def _largest(difference: Tensor) -> float:
    return float(difference.abs().max())


def proof_lines(proof: dict[str, Any]) -> list[str]:
    """Return a proof in a few lines for people."""
    lines = [f"proof    {proof['opened_by']}; {proof['pictures_from']}"]
    words = {
        "network": "the same pixels",
        "pictures": "the same pictures, each side's own preprocessing",
        "network_on_random_pixels": "random pixels",
    }
    for key, what in words.items():
        if found := proof.get(key):
            probability = found.get("max_abs_probability_difference")
            more = "" if probability is None else f", of probabilities {probability:.1e}"
            lines.append(
                f"         {what}: top-1 agrees on {found['num_top1_agreeing']} of {found['num_pictures']}, largest "
                f"difference of logits {found['max_abs_logit_difference']:.1e}{more}"
            )
    if accuracy := proof.get("accuracy"):
        lines.append(f"         accuracy {accuracy['ours']:.4f} before, {accuracy['exported']:.4f} exported")
    return lines
