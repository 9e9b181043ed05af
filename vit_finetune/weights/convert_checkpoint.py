"""From a checkpoint on disk to the folder that another library opens as it is, whole or not at all, with the proof.

Tensors are computed and written one at a time from a mapped file: memory holds the largest of them and not the model.
Only the proof builds networks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vit_finetune.common.errors import RequestError
from vit_finetune.common.files import atomic_folder, write_json
from vit_finetune.common.preprocess import PreprocessSpec
from vit_finetune.weights.checkpoint import Checkpoint, naming
from vit_finetune.weights.conversion_report import ConversionReport, TensorRow
from vit_finetune.weights.convert import Changes, Conversion, plan_conversion
from vit_finetune.weights.hints import Hints
from vit_finetune.weights.lazy import Lazy
from vit_finetune.weights.load import preprocess_for
from vit_finetune.weights.resample import POS_EMBED_METHODS
from vit_finetune.weights.sources import read_source
from vit_finetune.weights.target_folder import describe
from vit_finetune.weights.verify import verify_conversion
from vit_finetune.weights.way_back import ASIDE_NAME, REPORT_NAME, head_words
from vit_finetune.weights.writers import write_safetensors, write_tensors

_READ_SHARDS = ("transformers",)
Pictures = Tensor | Callable[[PreprocessSpec], Iterable[Tensor]] | None
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def convert_checkpoint(
    src: str | Path,
    dst: str | Path,
    *,
    to: str,
    source: str = "auto",
    verify: bool = True,
    verify_images: Pictures = None,
    config: Hints = None,
    head: str = "keep",
    img_size: int | tuple[int, int] | None = None,
    pos_embed: str | None = None,
    dtype: str | None = None,
    max_shard_size: str | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
) -> ConversionReport:
    """Write what another library reads, and prove that it computes the same.

    Args:
        src: whatever `read_source` takes.
        dst: the folder to make: weights, configuration, preprocessing and labels as the library names them, and
            `conversion.json` with the fate of every tensor.
        to: the format wanted, such as "timm", "hf_vit" or "torchvision".
        source: the format of `src`; "auto" detects it.
        verify: compare source and result on the same random pictures: in the library itself where it is installed and
            can open the result, else in our network on both sides.
        verify_images: pictures to compare on as well: a batch [B, C, H, W] as the network takes it, or a function from
            the result's preprocessing to such batches, as `picture_batches(paths)` gives.
        config: what the source doesn't tell; see `convert_state_dict`.
        head: "keep" or "drop" the classifier.
        img_size: pixels that the positions are resampled for; None keeps the source's.
        pos_embed: how they are resampled (see `load_pretrained`); None takes the way of the library that is written.
        dtype: "fp32", "fp16" or "bf16" for every tensor; None keeps each one's own.
        max_shard_size: such as "5GB": larger safetensors files become several with an index; None never splits.
        dry_run: plan and check everything, write nothing.
        overwrite: replace an older conversion at `dst`.

    Returns:
        The fate of every tensor, and the proof.

    Raises:
        NotRepresentable: one side can't say what the other computes; the message says what, and what could be done.
        RequestError: the source can't be read or isn't whole, or something has to be said in `config`.
    """
    dst = Path(dst)
    _check_pictures(verify_images, compares=verify and not dry_run)
    changes = _changes(head, img_size, pos_embed, dtype)
    if not dry_run:
        _check_place(dst, overwrite=overwrite)
    checkpoint = read_source(src)
    with naming(checkpoint):
        conversion = plan_conversion(checkpoint, to=to, source=source, config=config, changes=changes, names_only=False)
    _check_shards(max_shard_size, conversion)
    if dry_run:
        return _report(checkpoint, conversion, {}, None, notes=_described(checkpoint, conversion)[2])
    with atomic_folder(dst, replace=overwrite) as folder:
        return _write(
            folder, dst, checkpoint, conversion, max_shard_size=max_shard_size, verify=verify, pictures=verify_images
        )


def _write(
    folder: Path,
    dst: Path,
    checkpoint: Checkpoint,
    conversion: Conversion,
    *,
    max_shard_size: str | None,
    verify: bool,
    pictures: Pictures,
) -> ConversionReport:
    """Fill a folder that will become `dst`."""
    files, metadata, notes = _described(checkpoint, conversion)
    digests = write_tensors(
        folder,
        conversion.target.file,
        conversion.plan.tensors,
        metadata=metadata,
        max_shard_size=max_shard_size,
        wrapper=conversion.target.wrapper,
    )
    if aside := _set_aside(conversion):
        write_safetensors(folder / ASIDE_NAME, aside, metadata={})
    for name, values in files.items():
        write_json(folder / name, values)
    given = _batches(pictures, preprocess_for(conversion.config, checkpoint.preprocess))
    proof = verify_conversion(conversion, folder, given) if verify else None
    report = _report(checkpoint, conversion, digests, dst, notes=notes, proof=proof, folder=folder)
    write_json(folder / REPORT_NAME, report.to_mapping())
    return report


def _batches(pictures: Pictures, spec: PreprocessSpec) -> Iterable[Tensor]:
    if pictures is None:
        return ()
    if isinstance(pictures, Tensor):
        return (pictures,)
    if not callable(pictures):
        raise RequestError(
            f"verify_images is a {type(pictures).__name__}; give a batch of pictures, or picture_batches(paths)"
        )
    return pictures(spec)


def _described(
    checkpoint: Checkpoint, conversion: Conversion
) -> tuple[dict[str, dict[str, Any]], dict[str, str], tuple[str, ...]]:
    """Return the JSON files, the header metadata and the notes of a result."""
    files, metadata, notes = describe(
        conversion.written,
        conversion.target,
        architecture=checkpoint.architecture,
        preprocess=checkpoint.preprocess,
        class_names=_names(checkpoint, conversion),
        dtype=next(iter(conversion.plan.tensors.values())).meta.dtype,
    )
    if values := files.get(conversion.target.config_file):
        values.update(head_words(conversion.restored, values, conversion.plan.tensors))
    return files, metadata, notes


def _set_aside(conversion: Conversion) -> dict[str, Lazy]:
    """Return what is kept beside the result: nothing where it has its place there."""
    return {} if conversion.target is conversion.source else dict(conversion.earlier.aside)


def _changes(head: str, img_size: int | tuple[int, int] | None, pos_embed: str | None, dtype: str | None) -> Changes:
    if dtype is not None and dtype not in DTYPES:
        raise RequestError(f"dtype={dtype!r} is none of {', '.join(DTYPES)}")
    if pos_embed is not None and pos_embed not in POS_EMBED_METHODS:
        raise RequestError(f"pos_embed={pos_embed!r} is none of {', '.join(POS_EMBED_METHODS)}")
    size = (img_size, img_size) if isinstance(img_size, int) else img_size
    return Changes(head=head, img_size=size, pos_embed=pos_embed, dtype=DTYPES[dtype] if dtype else None)


def _check_shards(max_shard_size: str | None, conversion: Conversion) -> None:
    if max_shard_size is not None and conversion.target.library not in _READ_SHARDS:
        raise RequestError(f"{conversion.target.library} reads no weights in several files; leave max_shard_size out")


def _check_pictures(pictures: Pictures, *, compares: bool) -> None:
    if pictures is not None and not compares:
        raise RequestError("pictures to compare on need a result and a comparison; leave out them, or what prevents it")


def _check_place(dst: Path, *, overwrite: bool) -> None:
    """Refuse a place that is taken, and to replace anything but a conversion."""
    if not dst.exists():
        return
    if not overwrite:
        raise RequestError(f"{dst} exists already; choose another place or pass overwrite=True (--overwrite)")
    if not (dst / REPORT_NAME).is_file():
        raise RequestError(f"{dst} is no folder that a conversion wrote; remove it yourself")


def _names(checkpoint: Checkpoint, conversion: Conversion) -> tuple[str, ...] | None:
    names = checkpoint.class_names
    return names if names is not None and len(names) == conversion.config.num_classes else None


def _report(
    checkpoint: Checkpoint,
    conversion: Conversion,
    digests: dict[str, str],
    dst: Path | None,
    *,
    notes: tuple[str, ...],
    proof: Any = None,
    folder: Path | None = None,
) -> ConversionReport:
    return ConversionReport(
        source=checkpoint.description,
        destination=None if dst is None else str(dst),
        source_format=conversion.source.name,
        target_format=conversion.target.name,
        architecture=checkpoint.architecture,
        config=conversion.config.to_mapping(),
        tensors=tuple(_row(name, lazy, digests.get(name)) for name, lazy in conversion.plan.tensors.items()),
        dropped=dict(conversion.dropped),
        set_aside=tuple(_set_aside(conversion)),
        way_back=conversion.earlier.to_mapping() if conversion.earlier.names else None,
        notes=(*conversion.notes, *notes),
        files=() if folder is None else (*sorted(path.name for path in folder.iterdir()), REPORT_NAME),
        verification=proof,
    )


def _row(name: str, lazy: Lazy, digest: str | None) -> TensorRow:
    return TensorRow(
        sources=lazy.sources,
        target=name,
        operation="; ".join(lazy.operations) or "as it is",
        shape=lazy.shape,
        dtype=str(lazy.meta.dtype).removeprefix("torch."),
        sha256=digest,
    )
