"""Templates to one HTML file: everything that is not a template is escaped, and the browser may fetch nothing.

The page carries a content security policy that knows its own script by hash, so a name that looks like a script would
not run even if it were not escaped.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

_NOTHING, _SPACE, _THIN = "\N{EN DASH}", "\N{NO-BREAK SPACE}", "\N{NARROW NO-BREAK SPACE}"


def render(template: str, values: Mapping[str, Any]) -> str:
    """Return a page as HTML.

    Args:
        template: a file of `templates/`.
        values: what it shows, by name; text is escaped.
    """
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("vit_finetune.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, count=count, size=size, seconds=seconds, energy=energy)
    environment.globals["script_hash"] = script_hash
    return environment


def script_hash(script: str) -> str:
    """Return what a content security policy calls an inline script.

    Args:
        script: exactly what stands between the tags.
    """
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def percent(value: float | None, digits: int = 1) -> str:
    """Return a share of 1 in percent; a dash for None."""
    return _NOTHING if value is None else f"{100 * value:.{digits}f}{_SPACE}%"


def count(value: int | None) -> str:
    """Return a number with thin spaces between thousands; a dash for None."""
    return _NOTHING if value is None else f"{value:,}".replace(",", _THIN)


def size(value: float | None) -> str:
    """Return bytes as people read them."""
    if value is None:
        return _NOTHING
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= factor:
            return f"{value / factor:.1f}{_SPACE}{unit}"
    return f"{value:.0f} bytes"


def energy(value: float) -> str:
    """Return joules as people read them, and in watt-hours, as a bill counts them."""
    joules = f"{value / 1000:.1f}{_SPACE}kJ" if value >= 1000 else f"{value:.1f}{_SPACE}J"
    return f"{joules} ({value / 3600:.3g}{_SPACE}Wh)"


def seconds(value: float | None) -> str:
    """Return a duration as people read it."""
    if value is None:
        return _NOTHING
    if value < 60:
        return f"{value:.1f} s"
    whole = round(value)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {whole % 60:02} s"
