"""The kinds of values that options have; a wrong one is refused with its range."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer, WrapValidator

from vit_finetune.common.additions import ADDED_METRICS, ADDED_TUNING_MODES
from vit_finetune.common.durations import seconds_of

Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]


def _pair(value: object) -> object:
    """Read one number as (number, number): sizes may be given as 224 or [224, 320]."""
    return (value, value) if isinstance(value, int) and not isinstance(value, bool) else value


Size = Annotated[tuple[PositiveInt, PositiveInt], BeforeValidator(_pair)]


def _duration(value: object) -> object:
    """Refuse what is no duration; RequestError is a ValueError, which pydantic reports with the key."""
    seconds_of(str(value))
    return value


Duration = Annotated[str, BeforeValidator(_duration)]


def _or_one_of(added: Mapping[str, object]) -> WrapValidator:
    """Let a name through that was added, and leave every other value to the type."""

    def check(value: Any, handler: Callable[[Any], Any]) -> Any:
        return value if isinstance(value, str) and value in added else handler(value)

    return WrapValidator(check)


OR_ADDED_MODE = _or_one_of(ADDED_TUNING_MODES)
OR_ADDED_METRIC = _or_one_of(ADDED_METRICS)
AS_TEXT = PlainSerializer(str, return_type=str)  # pydantic warns of a value that is none of a Literal's
