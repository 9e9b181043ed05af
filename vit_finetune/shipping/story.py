"""The export of a finished model: written as its reader expects it, opened by that reader, compared, described."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_finetune.common.errors import RequestError
from vit_finetune.common.files import atomic_folder, write_json, write_text
from vit_finetune.common.suggest import did_you_mean
from vit_finetune.export import export_model_folder
from vit_finetune.export.onnx import ONNX_NAME, OPSETS, check_onnx, write_onnx
from vit_finetune.export.torch_export import PT2_NAME, write_torch_export
from vit_finetune.shipping.card import model_card
from vit_finetune.shipping.finished import Finished, open_finished, proof_pictures
from vit_finetune.shipping.layouts import write_torchvision, write_transformers
from vit_finetune.shipping.proof import PROOF_NAME, proof_lines, prove
from vit_finetune.shipping.readers import (
    Reader,
    open_onnx,
    open_safetensors,
    open_timm,
    open_torch_export,
    open_torchvision,
    open_transformers,
)
from vit_finetune.weights import embedded_metadata
from vit_finetune.weights.readers import read_json

TARGETS = ("timm", "transformers", "torchvision", "onnx", "torch_export", "safetensors")
CARD_NAME = "README.md"
_WEIGHTS = "model.safetensors"
_NEEDS = {"transformers": "transformers"}


@dataclass(frozen=True)
class ExportResult:
    """What an export wrote.

    Attributes:
        folder: where.
        target: one of `TARGETS`.
        files: the names in the folder.
        proof: what `proof.json` holds.
        notes: decisions, one sentence each.
    """

    folder: Path
    target: str
    files: tuple[str, ...]
    proof: dict[str, Any]
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return the result in a few lines for people."""
        return [
            f"{self.target:<8} {self.folder}: {', '.join(self.files)}",
            *(f"note     {note}" for note in self.notes),
            *proof_lines(self.proof),
        ]


@dataclass(frozen=True)
class OnnxOptions:
    """How an ONNX file is written; see `write_onnx`.

    Attributes:
        preprocessing: take it into the graph.
        precision: fp32, fp16 or int8.
        opset: from 18.
    """

    preprocessing: bool = True
    precision: str = "fp32"
    opset: int = OPSETS.start


def export_model(
    run_or_model: str | Path,
    out: str | Path,
    *,
    to: str = "timm",
    images: Iterable[str | Path] | None = None,
    max_images: int = 256,
    preprocessing: bool = True,
    precision: str = "fp32",
    opset: int = OPSETS.start,
    overwrite: bool = False,
) -> ExportResult:
    """Write a finished model as something else opens it, with a model card and the proof that it computes the same.

    Args:
        run_or_model: a run's folder, a model folder, its safetensors file, or anything that `from_pretrained` takes.
        out: the folder to make, whole or not at all.
        to: timm, transformers, torchvision, onnx, torch_export or safetensors.
        images: files or folders to prove it on; None takes the run's test split, else its val split.
        max_images: how many of them at most, spread evenly.
        preprocessing: of onnx: the graph takes uint8 pictures of any size; else prepared pixels.
        precision: of onnx: fp32, fp16 or int8.
        opset: of onnx.
        overwrite: replace an older export at `out`.

    Returns:
        What was written, with the proof that `proof.json` holds.

    Raises:
        NotRepresentable: the target cannot hold the model; the message says why, and what to take instead.
        RequestError: there is no such model, or `out` is taken.
        WorkError: what was written computes something else; nothing is kept.
    """
    out = Path(out)
    options = OnnxOptions(preprocessing, precision, opset)
    _check_request(out, to, options, overwrite=overwrite)
    finished = open_finished(run_or_model)
    pictures = proof_pictures(finished, images, most=max_images)
    with atomic_folder(out, replace=overwrite) as folder:
        notes, reader = _write(finished, folder, to, options)
        proof = prove(finished, reader, pictures, target=to, exact=precision == "fp32")
        if to == "onnx":
            proof |= {"precision": precision, "opset": opset, "preprocessing_inside": preprocessing}
        proof["notes"] = list(notes)
        write_json(folder / PROOF_NAME, proof)
        write_text(folder / CARD_NAME, model_card(finished, target=to, proof=proof))
        files = tuple(sorted(path.name for path in folder.iterdir()))
    return ExportResult(out, to, files, proof, notes)


def _check_request(out: Path, to: str, options: OnnxOptions, *, overwrite: bool) -> None:
    """Refuse what cannot be done, before a model is loaded."""
    if to not in TARGETS:
        raise RequestError(f"there is no target {to!r}{did_you_mean(to, TARGETS)}; it is one of {', '.join(TARGETS)}")
    if to != "onnx" and options != OnnxOptions():
        raise RequestError(f"precision, opset and preprocessing are of onnx; leave them out for {to}")
    if to == "onnx":
        check_onnx(options.precision, options.opset)
    if to in _NEEDS and importlib.util.find_spec(_NEEDS[to]) is None:
        raise RequestError(f"the proof of this export needs {_NEEDS[to]}; pip install {_NEEDS[to]}")
    if not out.exists():
        return
    if not overwrite:
        raise RequestError(f"{out} exists already; choose another place or pass overwrite=True (--overwrite)")
    if not (out / PROOF_NAME).is_file():
        raise RequestError(f"{out} is no folder that an export wrote; remove it yourself")


def _write(finished: Finished, folder: Path, to: str, options: OnnxOptions) -> tuple[tuple[str, ...], Reader]:
    """Fill a folder, and open it as its user would; the notes are decisions."""
    if to == "timm":
        _write_timm(finished, folder)
        return (), open_timm(folder)
    if to == "safetensors":
        with tempfile.TemporaryDirectory() as place:
            _write_timm(finished, Path(place))
            shutil.copyfile(Path(place) / _WEIGHTS, folder / _WEIGHTS)
        return ("the file's header says architecture, classes and preprocessing",), open_safetensors(folder)
    if to == "transformers":
        notes = write_transformers(finished, folder)
        return notes, open_transformers(folder)
    if to == "torchvision":
        notes, reference = write_torchvision(finished, folder)
        return notes, open_torchvision(reference, finished.preprocess)
    metadata = _metadata(finished)
    if to == "torch_export":
        write_torch_export(
            finished.model, folder / PT2_NAME, input_size=finished.preprocess.input_size, metadata=metadata
        )
        return ("the file takes prepared pixels; how to prepare them is inside, and in the README",), open_torch_export(
            folder
        )
    write_onnx(
        finished.model,
        folder / ONNX_NAME,
        spec=finished.preprocess,
        preprocessing=options.preprocessing,
        metadata=metadata,
        multilabel=finished.thresholds is not None,
        temperature=finished.temperature or 1.0,
        precision=options.precision,
        opset=options.opset,
    )
    return _onnx_notes(options), open_onnx(folder)


def _onnx_notes(options: OnnxOptions) -> tuple[str, ...]:
    inside = (
        "decode pictures upright and in RGB (EXIF turned, 16 bits divided by 257, alpha laid on white); the graph does "
        "the rest"
        if options.preprocessing
        else "the file takes prepared pixels; how to prepare them is in its metadata and in the README"
    )
    scales = ("activations get one scale a batch, so int8 logits depend a little on the batch",)
    return (inside, *(scales if options.precision == "int8" else ()))


def _write_timm(finished: Finished, folder: Path) -> None:
    """Write timm's layout: a folder of it is copied, so that nothing of it is lost."""
    source = Path(finished.source)
    config = source / "config.json"
    if finished.is_plain and config.is_file() and (source / _WEIGHTS).is_file() and "architecture" in read_json(config):
        for name in (config.name, _WEIGHTS):
            shutil.copyfile(source / name, folder / name)
        return
    with tempfile.TemporaryDirectory() as place:
        made = export_model_folder(
            finished.backbone,
            Path(place) / "model",
            preprocess=finished.preprocess,
            class_names=finished.class_names,
            thresholds=finished.thresholds,
            temperature=finished.temperature,
        )
        for path in made.iterdir():
            shutil.copyfile(path, folder / path.name)


def _metadata(finished: Finished) -> dict[str, str]:
    """Return what an exported file says of itself, in the words of our safetensors headers."""
    return embedded_metadata(
        getattr(finished.model, "name", None),
        {},
        preprocess=finished.preprocess,
        class_names=finished.class_names,
        thresholds=finished.thresholds,
        temperature=finished.temperature,
    )
