# SPDX-License-Identifier: Apache-2.0
"""What pages say that tables say is the same: figures that were measured, hooks in vLLM, tested
releases.
"""

import csv
import io
import re

import pytest

from docs import places as places_page
from docs import tables
from tests.docs.blocks import ROOT, pages
from tests.upstream.versions import RELEASES
from vllm_cold.compat import places, versions
from vllm_cold.compat.versions import RANGE, VALIDATED, minor
from vllm_cold.settings.presets import PRESETS

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("page", tables.PAGES)
def test_tables_are_what_was_measured(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert text == tables.written(page), "run python -m docs.tables"
    assert "<!-- table: " in text


def test_the_numbers_of_accuracy_are_what_was_measured() -> None:
    lines = list(csv.DictReader(io.StringIO(tables.CSV.read_text(encoding="utf-8"))))
    assert tables.CSV.read_text(encoding="utf-8") == tables.numbers(), "run python -m docs.tables"

    def points(**asked: str) -> str:
        (line,) = (each for each in lines if asked.items() <= each.items())
        return f"{float(line['points']):+.1f}"

    # Of the page: a method, one of a measure other than the first, one against a rival.
    page = (ROOT / "docs" / "accuracy.md").read_text(encoding="utf-8")
    large = {"model": "qwen-1.5b", "cell": "told-facts", "against": "greedy"}
    assert points(**large, measure="both", method="part repeated") == "+14.7"
    assert points(**large, measure="right", method="cad") == "-7.3"
    rival = {"cell": "retrieved", "measure": "right", "against": "best passage or none"}
    assert points(model="smollm2", **rival, method="cad") == "-28.0"
    assert all(figure in page for figure in ("14.7", "7.3", "28.0"))
    assert "[accuracy.csv](accuracy.csv)" in page


def test_tables_of_accuracy_are_folded() -> None:
    """But that of papers, which is read: a question's picture and sentences come first."""
    page = (ROOT / "docs" / "accuracy.md").read_text(encoding="utf-8")
    seen = re.sub(r"<details.*?</details>", "", page, flags=re.DOTALL)
    assert re.findall(r"<!-- table: ([\w-]+) -->", seen) == ["papers"]


def test_every_table_is_on_a_page_that_is_written() -> None:
    marked = {
        page: re.findall(r"<!-- table: ([\w-]+) -->", (ROOT / page).read_text()) for page in pages()
    }
    assert {page for page, names in marked.items() if names} == set(tables.PAGES)
    assert {name for names in marked.values() for name in names} == tables.TABLES.keys()


def test_what_a_contrast_costs_is_said_as_in_its_tables() -> None:
    def row(table: list[str], label: str) -> list[str]:
        (line,) = (line for line in table if label in line)
        return [cell.strip() for cell in line.strip("|").split("|")]

    def between(values: list[str]) -> str:
        return f"{min(values, key=float)} to {max(values, key=float)}"

    cost = row(tables.cost(), "**contrastive / greedy")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    page = " ".join((ROOT / "docs" / "performance.md").read_text(encoding="utf-8").split())
    assert (
        f"{between(cost[1::3])} times the time of greedy decoding at batch 1, and "
        f"{between(cost[3::3])} times at batch 8" in readme
    )
    everywhere = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in tables.cost_elsewhere()[2:]
    ]
    for column, batch in ((4, 1), (6, 8)):
        found = between([cells[column] for cells in everywhere if cells[column]])
        assert f"from {found} at batch {batch}" in page
    against_stock = row(tables.cost(), "greedy, stock vLLM: time")
    assert f"takes {between(against_stock[1:])} of the time of stock vLLM" in page


def test_every_preset_of_a_paper_is_in_the_table_of_papers() -> None:
    named = [re.findall(r"^`(\w+)`", paper.about) for paper in tables.PAPERS]
    assert sum(named, []) == list(dict.fromkeys(sum(named, [])))
    assert {*sum(named, []), "grounded", "bound"} == PRESETS.keys()
    for paper in tables.PAPERS:
        assert paper.verdict.startswith(("not tried", "reproduced", "not reproduced"))
    # Each row has what its figures are of: a mistyped cell would leave them out.
    for line in tables.papers()[2:]:
        here = line.split(" | ")[2]
        assert here == "nothing" or all(re.search(r": \S*\d", part) for part in here.split("; "))


def test_the_page_of_hooks_is_made_from_the_table() -> None:
    assert places_page.PAGE.read_text(encoding="utf-8") == places_page.text(), (
        "run python -m docs.places"
    )


def test_links_lead_upstream() -> None:
    links = [hook.link for hook in places_page.HOOKS if hook.link]
    assert links
    for link in links:
        upstream = r"https://github\.com/vllm-project/(vllm|vllm-ascend)/(pull|issues)/\d+"
        assert re.fullmatch(upstream, link), link
        assert f"]({link})" in places_page.text()


@pytest.mark.parametrize(
    ("heading", "can_go"),
    [
        ("A group of requests that go in lockstep", places.GROUPS),
        ("A hook after the logits of all rows", places.LOGITS),
        ("Prompts rendered for a derived request", places.DERIVED),
        ("What is left", places.CHANNEL),
    ],
)
def test_what_each_seam_would_end(heading: str, can_go: str) -> None:
    text = (ROOT / "docs" / "for-vllm.md").read_text(encoding="utf-8")
    section = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    named = re.findall(r"`((?:compat|frontend|scheduler|wire|worker)\.\w+)`", section)
    ended = {hook.file for hook in places_page.HOOKS if hook.can_go == can_go}
    assert named and set(named) == ended


def test_how_many_places_are_hooked_and_a_server_needs() -> None:
    """Of the newest release; of each, the page has it."""
    newest = versions.SUPPORTED[-1]
    (wrapped, _), (of_server, _) = (
        places_page.counts(newest),
        places_page.counts(newest, *places_page.ON_A_GPU),
    )
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"up to {wrapped} in all ({of_server} in a server" in readme


def test_each_release_is_in_the_table_and_how_far_it_is_tested() -> None:
    text = (ROOT / "docs" / "hardware.md").read_text(encoding="utf-8")
    section = text.split("\n## vLLM versions\n")[1].split("\n## ")[0]
    assert f"is for {RANGE}" in section
    with_engines: dict[str, bool] = {}
    for line in section.splitlines():
        if line.startswith("| 0."):
            first, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            for version in re.findall(r"\b0\.\d+\.\d+\b", first):
                assert version not in with_engines
                with_engines[version] = cells[-1] == "yes"
    assert with_engines == {
        version: "exact" in release.suites for version, release in RELEASES.items()
    }
    run = {minor(version) for version, engines in with_engines.items() if engines}
    assert run == set(VALIDATED)
