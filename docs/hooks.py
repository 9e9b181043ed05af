"""What the site needs beyond docs/: the documents beside it as pages, and the files that pages link to.

The documents link to each other as they lie in the repository, which is what a code host shows; here the same links are
turned to the places that the pages have in the site.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

_PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md"}
_RECIPES = "recipes/README.md"
_LINK = re.compile(r"\]\((?P<target>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put pages that the navigation does not name yet at its end, so that none is out of reach."""
    named = set(re.findall(r"[\w/]+\.md", str(config.nav)))
    rest = sorted(path.name for path in Path(config.docs_dir).glob("*.md") if path.name not in named)
    if rest:
        assert config.nav is not None
        config.nav.append({"More": rest})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the documents beside docs/, and what any page links to outside of it."""
    from mkdocs.structure.files import File

    root = Path(config.docs_dir).parent
    for name, place in {**_PAGES, _RECIPES: _RECIPES}.items():
        files.append(File.generated(config, place, content=(root / name).read_text(encoding="utf-8")))
    wanted: set[str] = set()
    for page in [*Path(config.docs_dir).glob("*.md"), *(root / name for name in (*_PAGES, _RECIPES))]:
        for match in _LINK.finditer(page.read_text(encoding="utf-8")):
            target = (page.parent / match["target"]).resolve()
            if target.is_file() and root in target.parents and target.suffix != ".md":
                wanted.add(target.relative_to(root).as_posix())
    for name in sorted(wanted):
        if not name.startswith("docs/"):
            files.append(File.generated(config, name, abs_src_path=str(root / name)))
        elif name.removeprefix("docs/") not in files.src_uris:
            files.append(File.generated(config, name.removeprefix("docs/"), abs_src_path=str(root / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Turn the links of a page from its place in the repository to its place in the site."""
    root = Path(config.docs_dir).parent
    source = next((name for name, place in _PAGES.items() if place == page.file.src_uri), None)
    here = (
        root / source if source else root / (_RECIPES if page.file.src_uri == _RECIPES else f"docs/{page.file.src_uri}")
    )
    depth = "../" * page.file.src_uri.count("/")

    def turned(match: re.Match[str]) -> str:
        target = (here.parent / match["target"]).resolve()
        if not target.exists() or root not in target.parents:
            return match[0]
        name = target.relative_to(root).as_posix()
        place = _PAGES.get(name, name.removeprefix("docs/"))
        return f"]({depth}{place}{match['anchor'] or ''})"

    return _LINK.sub(turned, markdown)
