# SPDX-License-Identifier: Apache-2.0
"""What the outputs depend on: other results are not to be mixed with them."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import vllm_cold
from vllm_cold.tools.tune.data import digest
from vllm_cold.tools.tune.task import Task

VERSIONS = ("vllm", "torch", "transformers")


def versions(task: Task) -> dict[str, str]:
    """Versions of what decodes, as far as they are known."""
    if task.server is not None:
        return {"vllm": task.server.version}
    found = {"vllm_cold": vllm_cold.__version__}
    for name in VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found


def fingerprint(task: Task) -> dict[str, Any]:
    """Everything that the outputs depend on, as JSON."""
    if task.server is None:
        files = {
            "the model's files": file_stamps(task.model),
            "the adapters": [file_digests(adapter.folder) for adapter in task.adapters],
        }
    else:
        files = {"--adapter": task.expert, "a server": True}
    return {
        "problems or contrasts": digest(task.problems),
        "--model": task.model,
        **files,
        "--max-tokens": task.options.max_tokens,
        "--stop": task.options.stop or [],
        "--chat": task.options.chat,
        "the engine's arguments": task.engine,
        **{f"version of {name}": version for name, version in versions(task).items()},
    }


def file_stamps(folder: str) -> Any:
    """Name, size and time of change of each file of a model's folder; a hub name stays as it is,
    and ``cached_commit`` tells its revisions apart.

    Weights are too large to be read for a digest.
    """
    path = Path(folder)
    if not path.is_dir():
        return folder
    files = sorted(file for file in path.iterdir() if file.is_file())
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def cached_commit(model: str, engine: Mapping[str, Any]) -> str | None:
    """The commit of a hub's model in the local cache, which an engine that started has loaded.

    Args:
        model: Folder or hub name.
        engine: Further arguments of ``vllm.LLM``, which may name a revision and a cache.

    Returns:
        None for a folder, and where the cache does not tell.
    """
    if Path(model).is_dir():
        return None
    from huggingface_hub import constants  # comes with vLLM
    from huggingface_hub.file_download import repo_folder_name

    cache = Path(engine.get("download_dir") or constants.HF_HUB_CACHE).expanduser()
    folder = cache / repo_folder_name(repo_id=model, repo_type="model")
    try:
        return (folder / "refs" / (engine.get("revision") or "main")).read_text().strip()
    except OSError:
        return None


def file_digests(folder: str) -> dict[str, str]:
    """SHA-256 of each file of an adapter's folder, by name."""
    found = {}
    for file in sorted(Path(folder).iterdir()):
        if file.is_file():
            with file.open("rb") as stream:
                found[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found
