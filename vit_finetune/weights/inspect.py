"""Saying what a checkpoint is, without building a network.

Shapes and names are enough for almost everything; the values are read once, for the hash of the file.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_finetune.common.errors import RequestError
from vit_finetune.common.files import sha256_file
from vit_finetune.common.preprocess import PreprocessSpec
from vit_finetune.models.network_config import NetworkConfig
from vit_finetune.models.variants import list_models, variant_config
from vit_finetune.weights.architecture import names_of, stated_config
from vit_finetune.weights.checkpoint import Checkpoint
from vit_finetune.weights.conversion import Converted, converted_from, has_names
from vit_finetune.weights.folder import read_path, weights_in
from vit_finetune.weights.formats import detect_format
from vit_finetune.weights.network import traceless
from vit_finetune.weights.readers import read_json, split_part
from vit_finetune.weights.readout_folder import is_readout_folder, read_readout_folder

# What shapes and names tell of a network: first its size, then its parts.
_SIZES = ("embed_dim", "depth", "patch_size")
_PARTS = (
    *("img_size", "class_token", "no_embed_class", "reg_tokens", "distilled", "pre_norm", "qkv_bias", "block_fn"),
    *("mlp_layer", "mlp_ratio", "attn_layer", "norm_layer", "norm_after_pool"),
    *("num_reg_tokens", "use_abs_pos_emb", "swiglu_mlp", "scale_mlp", "qkv_fused", "attn_type", "rope_type"),
)
_CLOSEST = 5


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What a checkpoint is.

    Attributes:
        path: the file or folder that was looked at.
        format: whose names the tensors carry; "unknown" where no table fits.
        architecture: as the source says; None where it doesn't.
        closest: registered architectures of the same shapes, most alike first; empty where `architecture` is known.
        num_tokens: tokens that the blocks see, class and register tokens included; None where it can't be told.
        grid: (rows, columns) of patches; None where it can't be told.
        num_classes: rows of the head, 0 without a head.
        class_names: one per row of the head; None where nothing names them.
        preprocess: the evaluation transform; None where nothing says it.
        dtypes: how many tensors there are of each type.
        num_parameters: values in all tensors together.
        num_tensors: how many tensors there are.
        num_bytes: size of the weight files.
        sha256: of each weight file, by its name.
        notes: what was unwrapped, and why a format or grid is unknown.
    """

    path: str
    format: str
    architecture: str | None
    closest: tuple[str, ...]
    num_tokens: int | None
    grid: tuple[int, int] | None
    num_classes: int
    class_names: tuple[str, ...] | None
    preprocess: PreprocessSpec | None
    dtypes: dict[str, int]
    num_parameters: int
    num_tensors: int
    num_bytes: int
    sha256: dict[str, str]
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return the facts, one a line."""
        closest = f"not stated; closest: {', '.join(self.closest)}" if self.closest else "not stated"
        grid = f"{self.grid[0]}x{self.grid[1]} patches" if self.grid else "unknown"
        names = ""
        if self.class_names is not None:
            names = f" ({', '.join(self.class_names[:6])}{', ...' if len(self.class_names) > 6 else ''})"
        spec = self.preprocess
        return [
            f"path          {self.path}",
            f"format        {self.format}",
            f"architecture  {self.architecture or closest}",
            f"tokens        {self.num_tokens or 'unknown'} (grid: {grid})",
            f"head          {f'{self.num_classes} classes{names}' if self.num_classes else 'none'}",
            "preprocessing "
            + (
                "not stated"
                if spec is None
                else ", ".join(f"{key} {value}" for key, value in spec.to_mapping().items())
            ),
            f"dtype         {', '.join(f'{dtype} ({count} tensors)' for dtype, count in self.dtypes.items())}",
            f"parameters    {self.num_parameters:,} in {self.num_tensors} tensors",
            f"size          {self.num_bytes:,} bytes",
            *(f"sha256        {digest}  {name}" for name, digest in self.sha256.items()),
            *(f"note          {note}" for note in self.notes),
        ]

    def to_mapping(self) -> dict[str, Any]:
        """Return the facts as JSON values."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
        return plain | {"preprocess": None if self.preprocess is None else self.preprocess.to_mapping()}


def inspect_checkpoint(path: str | Path) -> Inspection:
    """Look at a weight file or a model folder.

    Args:
        path: a file that `read_source` reads, or a folder with one.

    Returns:
        What it is.

    Raises:
        RequestError: nothing is there, or it is no weight file.
    """
    path = Path(path).expanduser()
    if is_readout_folder(path):
        return _inspect_readout(path)
    checkpoint = read_path(path)
    files = _weight_files(path)
    layout, converted, notes = _our_names(checkpoint)
    tensors = converted.tensors
    config, closest, more = _network(checkpoint, converted)
    dtypes: dict[str, int] = {}
    for tensor in checkpoint.tensors.values():
        kind = str(tensor.dtype).removeprefix("torch.")
        dtypes[kind] = dtypes.get(kind, 0) + 1
    head = tensors.get("head.weight")
    return Inspection(
        path=str(path),
        format=layout,
        architecture=checkpoint.architecture,
        closest=closest,
        num_tokens=config.num_tokens if config else None,
        grid=config.grid_size if config else None,
        num_classes=0 if head is None else int(head.shape[0]),
        class_names=checkpoint.class_names,
        preprocess=checkpoint.preprocess,
        dtypes=dtypes,
        num_parameters=sum(tensor.numel() for tensor in checkpoint.tensors.values()),
        num_tensors=len(checkpoint.tensors),
        num_bytes=sum(file.stat().st_size for file in files),
        sha256={file.name: sha256_file(file) for file in files},
        notes=(*checkpoint.notes, *notes, *more),
    )


def _inspect_readout(path: Path) -> Inspection:
    """Look at a folder of ours with a readout on a backbone."""
    model, report = read_readout_folder(path)
    tensors, weights = model.state_dict(), weights_in(path)
    dtypes = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
    return Inspection(
        path=str(path),
        format="vit_finetune readout",
        architecture=model.name,
        closest=(),
        num_tokens=model.config.num_tokens,
        grid=model.config.grid_size,
        num_classes=model.num_classes,
        class_names=report.class_names,
        preprocess=report.preprocess,
        dtypes=dict(dtypes),
        num_parameters=sum(tensor.numel() for tensor in tensors.values()),
        num_tensors=len(tensors),
        num_bytes=weights.stat().st_size,
        sha256={weights.name: sha256_file(weights)},
        notes=report.notes,
    )


def _weight_files(path: Path) -> list[Path]:
    """Return the files that hold the weights: one, or the shards that an index lists."""
    path, _ = split_part(path)
    weights = weights_in(path) if path.is_dir() else path
    if weights.suffix != ".json":
        return [weights]
    return [weights.parent / name for name in sorted(set(read_json(weights)["weight_map"].values()))]


def _our_names(checkpoint: Checkpoint) -> tuple[str, Converted, list[str]]:
    """Return the format's name, the tensors under our names, and why there are none."""
    nothing = Converted({}, {})
    try:
        layout = "timm" if _is_as_named(checkpoint) else detect_format(checkpoint.tensors)
    except RequestError as error:
        return "unknown", nothing, [str(error)]
    try:
        return layout, converted_from(checkpoint, source=layout), []
    except RequestError as error:
        return layout, nothing, [str(error)]


def _is_as_named(checkpoint: Checkpoint) -> bool:
    """Say whether a source that names its architecture has just the tensors that timm has for it."""
    try:
        config = stated_config(checkpoint)
    except RequestError:
        return False
    return config is not None and has_names(checkpoint.tensors, names_of(config))


def _network(checkpoint: Checkpoint, converted: Converted) -> tuple[NetworkConfig | None, tuple[str, ...], list[str]]:
    """Return the network, the architectures closest to it where it isn't named, and what couldn't be told."""
    notes, tensors, family = [], converted.tensors, converted.family
    try:
        stated = stated_config(checkpoint)
    except RequestError as error:
        stated, notes = None, [str(error)]
    if stated is not None or not tensors:
        return stated, (), notes
    # Heads, epsilon and activation leave no trace in shapes and change none of what is reported here.
    known = traceless(family) | converted.fields
    if (
        "global_pool" not in known
        and "cls_token" in tensors
        and not {"fc_norm.weight", "attn_pool.latent"} & tensors.keys()
    ):
        known["global_pool"] = "token"
    try:
        told = family.from_state_dict(tensors, known=known)
    except RequestError as error:
        return None, (), [*notes, str(error)]
    return told, closest_architectures(told), notes


def closest_architectures(config: NetworkConfig) -> tuple[str, ...]:
    """Return the registered networks of the same family that share most with a network, most alike first."""
    kin = {name: other for name in list_models() if type(other := variant_config(name)) is type(config)}

    def distance(name: str) -> tuple[int, int, str]:
        other = kin[name]
        sizes = [key for key in _SIZES if getattr(other, key) != getattr(config, key)]
        parts = [key for key in _PARTS if hasattr(config, key) and getattr(other, key) != getattr(config, key)]
        scaled = (other.init_values is None) != (config.init_values is None)
        return len(sizes), len(parts) + scaled, name

    return tuple(sorted(kin, key=distance)[:_CLOSEST])
