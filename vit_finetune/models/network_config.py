"""What the configs of all families share: JSON in and out, changes by name, and refusals in words.

No network and no torch in here; the fields themselves stand in each family's own config, under timm's names.

Legend: gh gw patch grid, N tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from types import NoneType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from vit_finetune.common.errors import RequestError
from vit_finetune.common.suggest import did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

PAIRS = ("img_size", "patch_size")
_POSITIVE = ("in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio", "norm_eps")
_NOT_NEGATIVE = ("num_classes", "reg_tokens", "num_reg_tokens", "swiglu_align_to")
_RATES = ("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate")


class NetworkConfig:
    """The base of every family's config, which is a frozen dataclass of plain, hashable values.

    Attributes:
        CHOICES: the values that a field of words allows.
        OPTIONAL: the types of the fields that may be None.
        KIND: what networks of the family are called.
    """

    KIND: ClassVar[str] = ""
    CHOICES: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    OPTIONAL: ClassVar[Mapping[str, tuple[type, ...]]] = {}

    img_size: tuple[int, int]
    patch_size: tuple[int, int]
    in_chans: int
    num_classes: int
    global_pool: str
    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float
    init_values: float | None
    norm_eps: float
    drop_rate: float
    pos_drop_rate: float
    patch_drop_rate: float
    proj_drop_rate: float
    attn_drop_rate: float
    drop_path_rate: float
    weight_init: str

    def __post_init__(self) -> None:
        """Refuse what no network can be built from: wrong types first, then ranges, then contradictions.

        Raises:
            RequestError: a field is outside of what it allows, or fields contradict each other.
        """
        problems = self._type_problems() or self._range_problems() or self._conflicts()
        if problems:
            raise RequestError(f"this {type(self).__name__} cannot be built: " + "; ".join(problems))

    @property
    def norm_layer(self) -> str:
        """The kind of every norm, a key of `layers.NORMS`."""
        return "layernorm"

    @property
    def dynamic_img_size(self) -> bool:
        """Whether images of other sizes than `img_size` are taken."""
        return False

    @property
    def places_any_grid(self) -> bool:
        """Whether a forward pass can make positions for another patch grid than that of `img_size`."""
        return True

    @property
    def blocks_alike(self) -> bool:
        """Whether all blocks have the same number of parameters."""
        return True

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches."""
        raise NotImplementedError

    @property
    def grid_size(self) -> tuple[int, int]:
        """Patches per column and row, (gh, gw); pixels that fill no whole patch are not seen."""
        return self.img_size[0] // self.patch_size[0], self.img_size[1] // self.patch_size[1]

    @property
    def num_tokens(self) -> int:
        """Tokens N that the blocks see at `img_size`."""
        return self.num_prefix_tokens + self.grid_size[0] * self.grid_size[1]

    def to_mapping(self) -> dict[str, Any]:
        """Return every field as plain JSON values (lists for tuples)."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in self._values().items()}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Read a config from field names and values; sizes may be an int, a list or a tuple.

        Args:
            values: some or all fields; the others keep their defaults.

        Raises:
            RequestError: an unknown field, or a value that `__post_init__` refuses.
        """
        return cls().updated(values)

    @classmethod
    def from_state_dict(cls, tensors: Mapping[str, Tensor], *, known: Mapping[str, Any] | None = None) -> Self:
        """Read a config off the names and shapes of a state dict in timm's layout.

        Args:
            tensors: parameter names and tensors; only shapes are read.
            known: fields that weights do not tell, such as `{"num_heads": 6, "norm_eps": 1e-6}`.

        Raises:
            RequestError: the layout is another one, or fields that weights do not tell are not in `known`.
        """
        raise NotImplementedError

    def acting(self, name: str) -> Any:
        """Return a field as the network acts on it, where None stands for what follows from other fields.

        Args:
            name: of the field.
        """
        return getattr(self, name)

    def updated(self, values: Mapping[str, Any]) -> Self:
        """Return this config with some fields changed; sizes may be an int, a list or a tuple.

        Args:
            values: field names and their new values.

        Raises:
            RequestError: an unknown field, or a value that `__post_init__` refuses.
        """
        known = list(self._values())
        for key in values:
            if key not in known:
                raise RequestError(f"{type(self).__name__} has no field {key!r}{did_you_mean(key, known)}")
        return replace(self, **{key: _plain(key, value) for key, value in values.items()})  # type: ignore[type-var]

    def _values(self) -> dict[str, Any]:
        """Return the fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]

    def _type_problems(self) -> list[str]:
        """Say which fields are not of their default's type; a float field takes an int too."""
        problems = []
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if field.name in PAIRS:
                good = is_pair(value)
                allowed = "(height, width) in whole pixels"
            else:
                types = self.OPTIONAL.get(field.name, (type(field.default),))
                good = type(value) in types or (float in types and type(value) is int)
                names = ("None" if kind is NoneType else kind.__name__ for kind in types)
                allowed = f"of type {' or '.join(names)}"
            if not good:
                problems.append(f"{field.name}={value!r} is not {allowed}")
        return problems

    def _range_problems(self) -> list[str]:
        """Say which single fields are outside of what they allow."""
        values = self._values()

        def known(names: tuple[str, ...]) -> list[str]:
            return [name for name in names if name in values]

        problems = [
            f"{name}={values[name]!r} is not one of {', '.join(map(repr, allowed))}"
            + did_you_mean(values[name], allowed)
            for name, allowed in self.CHOICES.items()
            if values[name] not in allowed
        ]
        problems += [f"{name}={values[name]!r} has a side below 1 pixel" for name in PAIRS if min(values[name]) < 1]
        problems += [f"{name}={values[name]!r} is not above 0" for name in known(_POSITIVE) if not values[name] > 0]
        problems += [f"{name}={values[name]!r} is below 0" for name in known(_NOT_NEGATIVE) if values[name] < 0]
        problems += [f"{name}={values[name]!r} is not in [0, 1)" for name in known(_RATES) if not 0 <= values[name] < 1]
        if self.init_values is not None and not self.init_values > 0:
            problems.append(f"init_values={self.init_values!r} is not above 0 (None leaves LayerScale out)")
        return problems

    def _conflicts(self) -> list[str]:
        """Say which fields contradict each other; each field alone is fine."""
        raise NotImplementedError


def is_pair(value: object) -> bool:
    """Return whether a value is two whole numbers."""
    return isinstance(value, tuple) and [type(side) for side in value] == [int, int]


def _plain(key: str, value: Any) -> Any:
    """Return a side as (side, side) and a list as a tuple; anything else as it is, for `__post_init__` to refuse."""
    if key in PAIRS and isinstance(value, int):
        return value, value
    return tuple(value) if isinstance(value, list) else value
