# SPDX-License-Identifier: Apache-2.0
"""README.md, SECURITY.md and CONTRIBUTING.md are pages of the site, too, and links to what is none
lead to the repository: a hook of mkdocs.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PAGES = {
    "README.md": "index.md",
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add them, with links as from docs/."""
    root = Path(config.config_file_path).parent
    for name, page in PAGES.items():
        text = (root / name).read_text(encoding="utf-8").replace("](docs/", "](")
        for other, there in PAGES.items():
            text = text.replace(f"]({other}", f"]({there}")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(text: str, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Lead links to excluded pages and the changelog to the repository."""

    def link(found: re.Match[str]) -> str:
        name = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), found[1]))
        if name != "CHANGELOG.md":
            if config.exclude_docs is None or not config.exclude_docs.match_file(name):
                return found[0]
            name = f"docs/{name}"
        return f"]({config.repo_url}/blob/main/{name}{found[2] or ''})"

    return re.sub(r"\]\(([\w./-]+\.md)(#[\w-]+)?\)", link, text)
