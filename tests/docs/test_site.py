# SPDX-License-Identifier: Apache-2.0
"""The site builds without a warning, its pictures are what the code draws, and its pages ask the
network for nothing.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import vllm_cold
from tests.docs.blocks import ROOT, pages
from vllm_cold import ops


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built by ``mkdocs build --strict`` as ``make docs`` does."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.unit
def test_every_page_is_there_and_found(site: Path) -> None:
    """Some 22 in the navigation, the others by a link of another page's text; or it is left out,
    and links lead to the repository.
    """
    link = re.compile(r'<a [^>]*href="([^":#]+\.html)')
    navigation = set(link.findall((site / "index.html").read_text().partition("<article")[0]))
    assert 18 < len(navigation) < 27
    linked = set[str]()
    for page in site.rglob("*.html"):
        (body,) = re.findall(r"<article.*</article>", page.read_text(), re.DOTALL) or [""]
        folder = page.parent.relative_to(site)
        linked |= {os.path.normpath(folder / name) for name in link.findall(body)}
    left_out = 0
    for page in pages():
        if page.startswith("docs/"):
            name = Path(page).relative_to("docs").with_suffix(".html").as_posix()
            if not (site / name).exists():
                left_out += 1
                assert f"/blob/main/{page}" in "".join(p.read_text() for p in site.rglob("*.html"))
            else:
                assert name in navigation | linked, name
    assert left_out == 5
    assert not list(site.rglob("*.py"))


@pytest.mark.unit
def test_what_is_exported_is_in_the_reference(site: Path) -> None:
    """With its docstring: of each class and function, and of each of their fields."""
    page = (site / "reference" / "python.html").read_text()
    for module in (vllm_cold, ops):
        for name in (name for name in module.__all__ if name != "__version__"):
            assert f'id="{module.__name__}.{name}"' in page
            found = re.findall(r"^ {8}(\w+): ", getattr(module, name).__doc__ or "", flags=re.M)
            assert found and all(f">{field}<" in page for field in found), name


@pytest.mark.unit
def test_readmes_links_to_headings_lead_there() -> None:
    """mkdocs checks those of the site, and tests/unit/test_release.py that files are there."""
    links = re.findall(r"\]\(([^)#:]*)#([^)]+)\)", (ROOT / "README.md").read_text())
    assert links
    for name, anchor in links:
        headings = re.findall(r"^#+ (.+)$", (ROOT / (name or "README.md")).read_text(), re.M)
        slugs = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
        assert anchor in [slug.replace(" ", "-") for slug in slugs], name


@pytest.mark.browser
@pytest.mark.parametrize(("colours", "scheme"), [("light", "default"), ("dark", "slate")])
def test_pages_work_without_a_network(colours: str, scheme: str, site: Path, chromium: Any) -> None:
    """In Chromium, from a folder: nobody else is asked, no error, every picture is shown,
    and the search finds pages.
    """
    context = chromium.new_context(color_scheme=colours)
    asked: list[str] = []
    wrong: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    context.on("weberror", lambda error: wrong.append(str(error.error)))
    context.on("console", lambda m: m.type == "error" and wrong.append(m.text))
    opened = {}
    for file in sorted(site.rglob("*.html")):
        if file.name != "404.html":  # its addresses are of a server
            name = file.relative_to(site).as_posix()
            opened[name] = context.new_page()
            opened[name].goto(file.as_uri())
    opened["search"] = context.new_page()
    opened["search"].goto((site / "index.html").as_uri() + "?q=amateur")
    opened["search"].wait_for_selector(".md-search-result__item")
    images = 0
    for name, page in opened.items():  # half a second without a request, of all at once
        page.wait_for_load_state("networkidle")
        sizes = page.evaluate("() => [...document.images].map((i) => i.naturalWidth)")
        assert all(sizes), name
        images += len(sizes)
        if not name.startswith("samples/"):  # which the commands wrote
            assert page.evaluate("document.body.dataset.mdColorScheme") == scheme
    context.close()
    assert len(opened) > 15 and images > 5 and len(asked) > len(opened)
    assert [url for url in asked if not url.startswith((site.as_uri(), "data:", "blob:"))] == []
    assert wrong == []


@pytest.mark.unit
def test_pictures_are_what_the_code_draws(tmp_path: Path) -> None:
    """``make docs`` draws them anew, that of a server under load from what was measured; the
    shipped ones are those, whoever draws.
    """
    from benchmarks.load import show
    from docs import pictures

    written = [*pictures.write(tmp_path), tmp_path / "load.svg"]
    measured = json.loads((ROOT / "benchmarks" / "measured" / "load.json").read_text())
    show.picture(measured["runs"], written[-1])
    shipped = {path.name for path in pictures.FOLDER.glob("*.svg")}
    assert {path.name for path in written} == shipped
    for path in written:
        (text, numbers), (old_text, old_numbers) = drawn(path), drawn(pictures.FOLDER / path.name)
        remedy = f"{path.name}: run python -m docs.pictures or benchmarks.bench_load"
        assert text == old_text, remedy
        # To a fifth of a point: matplotlib's fonts differ.
        assert numbers == pytest.approx(old_numbers, abs=0.2), remedy


def drawn(path: Path) -> tuple[str, list[float]]:
    """A picture's text without fractional numbers, and these."""
    text = re.sub(r"<metadata>.*?</metadata>", "", path.read_text(), flags=re.S)
    fraction = r"-?\d+\.\d+"
    return re.sub(fraction, "", text), [float(number) for number in re.findall(fraction, text)]
