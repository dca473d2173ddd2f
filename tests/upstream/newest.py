# SPDX-License-Identifier: Apache-2.0
"""Whether vLLM's newest release, or its main branch, has changed where vllm-cold takes part:
``python -m tests.upstream.newest [VERSION | main | WHEEL] [--issue FILE]``.

Without an argument it is the newest release on pip's index; ``main``: the newest wheel of vLLM's
main branch for CPUs; else a version, or the file of a wheel. vLLM's Python part is unpacked into an
environment below ``.venv/versions``, in which all other packages are ``.venv``'s, and looked at in
two ways: row by row, whether the places are there that vllm-cold wraps or relies on (``broken``),
and by the tests that need no model, contracts among them. No engine runs. It takes some minutes.

What broke is printed as the text of an issue, and written into ``--issue``; the exit code is 1
then. ``.github/workflows/newest.yml`` does it once a week, and opens the issue.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.upstream import environments, sdist, versions
from tests.upstream.broken import Row
from tests.upstream.compare import Result

MAIN, RELEASE = "main", "release"
SHOWN = 50  # causes of failures
PLACES = "https://vllm-cold.github.io/vllm-cold/reference/places.html"


def prepare(wanted: str) -> tuple[str, Path]:
    """The version, and the interpreter of its environment."""
    wheel = None
    if wanted == MAIN:
        wheel = sdist.fetch_main()
    elif wanted.endswith(".whl"):
        wheel = Path(wanted)
    version = sdist.newest() if wanted == RELEASE else wanted
    if wheel is not None:
        version = sdist.wheel_version(wheel)
    return version, environments.python_part(version, wheel)


def rows(python: Path) -> list[Row]:
    """The rows that broke; RuntimeError if our package cannot even look."""
    command = [str(python), "-m", "tests.upstream.broken"]
    done = subprocess.run(command, cwd=sdist.ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return [Row.from_json(row) for row in json.loads(done.stdout.splitlines()[-1])]


def left_out(version: str) -> dict[str, str]:
    """What cannot be run on vLLM's Python part alone: what cannot be on the last known release."""
    known = versions.RELEASES.get(version) or list(versions.RELEASES.values())[-1]
    return versions.EVERYWHERE | known.left_out


def title(wanted: str, version: str) -> str:
    """One issue for main, whatever its commit; one for each release."""
    return "vLLM's main breaks vllm-cold" if wanted == MAIN else f"vLLM {version} breaks vllm-cold"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _some(tests: Sequence[str]) -> str:
    return f"`{tests[0]}`" + (f" and {len(tests) - 1} more" if len(tests) > 1 else "")


def issue(
    heading: str, wanted: str, version: str, broken: Sequence[Row], result: Result,
    failures: Mapping[str, str],
) -> str:  # fmt: skip
    """The text of an issue, its title in the first line; what fails most tests comes first."""
    by_cause: dict[str, list[str]] = {}
    for test, why in failures.items():
        by_cause.setdefault(why, []).append(test)
    causes = sorted(by_cause, key=lambda why: -len(by_cause[why]))
    lines = [f"# {heading}", "", f"vLLM {version}, looked at without an engine.", ""]
    if broken:
        lines += [
            f"Of the [table of places]({PLACES}) {len(broken)} rows broke:",
            "",
            "| file | needed | what is wrong | what it is for | without it |",
            "|---|---|---|---|---|",
            *(
                f"| `{row.file}` | {_cell(row.when)} | {_cell('; '.join(row.problems))} "
                f"| {_cell(row.why)} | {_cell(row.lost) or 'contrasts are refused'} |"
                for row in broken
            ),
        ]
    else:
        lines.append(f"All rows of the [table of places]({PLACES}) hold.")
    lines += [
        "",
        f"Tests without a model: {result.passed} passed, {result.failed} failed, {result.skipped} "
        "skipped.",
        "",
        *(f"- {_some(by_cause[why])}: {_cell(why)}" for why in causes[:SHOWN]),
    ]
    if len(causes) > SHOWN:
        lines.append(f"- other causes: {len(causes) - SHOWN}")
    again = wanted if wanted != RELEASE else version
    lines += ["", f"The same again: `make newest VLLM={again}`."]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("vllm", nargs="?", default=RELEASE, help="VERSION, main, or a wheel")
    parser.add_argument("--issue", type=Path, metavar="FILE", help="written if something broke")
    options = parser.parse_args(arguments)
    version, python = prepare(options.vllm)
    try:
        broken = rows(python)
    except RuntimeError as error:
        broken = [Row("all files", "always", (str(error),), "nothing of ours can be loaded", "")]
    result, failures = versions.tests(version, "model-free", python, left_out(version))
    if not broken and not result.failed:
        print(f"vLLM {version}: all rows of the table of places hold, {result.passed} tests passed")
        return 0
    heading = title(options.vllm, version)
    text = issue(heading, options.vllm, version, broken, result, failures)
    print(f"\n{text}")
    if options.issue is not None:
        options.issue.write_text(text, encoding="utf-8")
    return 1


if __name__ == "__main__":
    sys.exit(main())
