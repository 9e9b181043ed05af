"""A check as one HTML file that needs nothing else: no script, no network, light and dark.

Everything that comes from the data is escaped, and pictures are small JPEGs inside the file.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from PIL import Image

from vit_finetune.common.errors import RequestError
from vit_finetune.data.audit.findings import KINDS, Example, Finding, printable
from vit_finetune.data.images import decode_image
from vit_finetune.preflight.outcome import CheckResult

_MAX_CASES = 24  # of a finding that are shown
_MAX_TOGETHER = 4  # pictures of one case
_THUMB = 112  # pixels
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --stop: #c62828; --warning: #b26a00; --note: #546e7a; --bar: #5b8def; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 span, summary b { padding: .1rem .5rem; border-radius: .4rem; color: #fff; background: var(--note); }
.stop { background: var(--stop) !important; } .warning { background: var(--warning) !important; }
.go { background: #2e7d32 !important; }
details { border: 1px solid var(--line); border-radius: .5rem; margin: .6rem 0; padding: .5rem .8rem; }
summary { cursor: pointer; }
.cases { display: flex; flex-wrap: wrap; gap: .8rem; margin-top: .6rem; }
figure { margin: 0; max-width: 30rem; font-size: 12px; overflow-wrap: anywhere; }
figure img { max-width: 112px; max-height: 112px; margin-right: .3rem; border: 1px solid var(--line); }
.none { display: inline-block; width: 112px; height: 64px; border: 1px dashed var(--line); text-align: center; }
table { border-collapse: collapse; font-size: 13px; } td, th { padding: .15rem .6rem; text-align: left; }
td.number { text-align: right; } i { display: inline-block; height: .7rem; background: var(--bar); }
.columns { display: flex; flex-wrap: wrap; gap: 2rem; }
"""


def page_of(result: CheckResult, figures: Sequence[str]) -> str:
    """Return a check as a page.

    Args:
        result: of `check`.
        figures: the dry run, line by line.
    """
    sizes = ", ".join(f"{count:,} {name}" for name, count in result.sizes().items())
    kind = {"go": "go", "stop": "stop"}.get(result.verdict, "warning")
    parts = [
        f"<h1>Check of the data: <span class='{kind}'>{escape(result.verdict)}</span></h1>",
        f"<p>{escape(sizes)}; {len(result.classes()):,} classes. Level {result.level}. {escape(result.pace)}.</p>",
        *(_finding(result, finding) for finding in result.findings),
        "<p>Nothing was found.</p>" if not result.findings else "",
    ]
    if figures:
        parts += ["<h2>Dry run</h2><ul>", *(f"<li>{escape(line)}</li>" for line in figures), "</ul>"]
    pictures = result.to_mapping()["pictures"]
    parts += ["<h2>Pictures</h2><div class='columns'>", *(_bars(name, pictures[name]) for name in pictures), "</div>"]
    colours = result.colours()
    if colours:
        text = ", ".join(f"{name} {' '.join(f'{value:.3f}' for value in values)}" for name, values in colours.items())
        parts.append(f"<p>Colours of train, in [0, 1]: {text}.</p>")
    parts += ["<h2>Classes</h2>", _classes(result.classes())]
    head = f"<meta charset='utf-8'><title>Check of the data</title><style>{_STYLE}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _finding(result: CheckResult, finding: Finding) -> str:
    """Return one finding, open where it is more than a note."""
    kind = finding.severity.name.lower()
    cases = "".join(_case(result, example) for example in finding.examples[:_MAX_CASES])
    more = finding.how_many - min(len(finding.examples), _MAX_CASES)
    title = f"<b class='{kind}'>{kind}</b> <code>{finding.code}</code> {finding.how_many:,} {escape(finding.what)}"
    remedy = escape(KINDS[finding.code].remedy)
    return (
        f"<details{' open' if kind != 'note' else ''}><summary>{title}</summary><p>What to do: {remedy}.</p>"
        f"<div class='cases'>{cases}</div>{f'<p>and {more:,} more</p>' if more else ''}</details>"
    )


def _case(result: CheckResult, example: Example) -> str:
    pictures = "".join(_picture(result, split, index) for split, index in example.places[:_MAX_TOGETHER])
    note = f"<br>{escape(example.note)}" if example.note else ""
    return f"<figure>{pictures}<figcaption>{escape(example.name)}{note}</figcaption></figure>"


def _picture(result: CheckResult, split: str, index: int) -> str:
    """Return a picture as a thumbnail, or a frame in the place of one that cannot be decoded."""
    missing = "<span class='none'>not decoded</span>"
    pictures = dict(result.splits.named())[split] if result.splits is not None else None
    if pictures is None or result.facts[split][index].fault:
        return missing
    try:
        with Image.open(io.BytesIO(pictures.store.read(index))) as image:
            image.draft(None, (_THUMB, _THUMB))
            small = decode_image(image)
    except (RequestError, OSError):  # it changed since, or the quick level did not look at its pixels
        return missing
    small.thumbnail((_THUMB, _THUMB))
    content = io.BytesIO()
    small.save(content, "JPEG", quality=80)
    return f"<img alt='' src='data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}'>"


def _bars(name: str, counts: Mapping[str, int]) -> str:
    """Return counts as a small table with bars."""
    most = max(counts.values(), default=1)
    rows = "".join(
        f"<tr><td>{escape(key)}</td><td class='number'>{count:,}</td>"
        f"<td><i style='width:{max(1, round(100 * count / most))}px'></i></td></tr>"
        for key, count in counts.items()
    )
    return f"<table><tr><th colspan='3'>{escape(name)}</th></tr>{rows}</table>"


def _classes(classes: Mapping[str, Mapping[str, int]]) -> str:
    """Return the pictures of each class in each split."""
    splits = list(next(iter(classes.values()), {}))
    head = _row("th", ["class", *splits])
    rows = (
        _row("td", [printable(name), *(f"{counts[split]:,}" for split in splits)]) for name, counts in classes.items()
    )
    return f"<table>{head}{''.join(rows)}</table>"


def _row(tag: str, cells: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"
