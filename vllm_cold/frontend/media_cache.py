# SPDX-License-Identifier: Apache-2.0
"""The front end's cache of processed media.

With its usual cache (the sender's), vLLM's front end sends an image once and from then on its hash,
and relies on the engine core getting requests in the order in which their images were processed. A
contrastive request whose amateurs' prompts are still to be made would be overtaken: a later request
would send the hash first, and fail. So on a server a contrastive request always sends its data, out
of a cache without that order (``ALWAYS_SENT``), and the sender's cache is told when it is sent
(``tell_sent``). Offline each prompt is sent before the next is processed. There, and by async
engines, media of a refused request were never sent, and are forgotten (``forgotten_if_refused``).
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from vllm_cold.frontend import request_media
from vllm_cold.frontend.prompts import contrast_of, is_decided, source_of

_SKIPS = "skip_mm_cache"
# The arguments of vLLM's renderer for a prompt whose media are always sent.
ALWAYS_SENT: Mapping[str, bool] = {} if request_media.is_old() else {_SKIPS: True}


@contextmanager
def forgotten_if_refused(renderer: Any, offline: bool) -> Iterator[None]:
    """Around what may refuse a request after its prompts were made: then the sender's cache forgets
    its media, or the next request with one of them would fail. It forgets all others, too, which
    are sent once more.

    Args:
        renderer: vLLM's.
        offline: Whether this thread uses the cache. Else a thread of its own does, and empties it
            before its next image.
    """
    try:
        yield
    except (ValueError, asyncio.CancelledError, KeyboardInterrupt):  # a client may hang up
        if (sender := _sender(renderer)) is not None:
            if offline:
                sender.clear_cache()
            else:
                renderer._mm_executor.submit(sender.clear_cache)
        raise


def tell_sent(renderer: Any, prompt: Any) -> None:
    """Tell the sender's cache of a sent prompt's media, and its amateurs', that were processed
    without it: the engine core caches them too, and both have to drop the same ones. Done in vLLM's
    thread for media. A beam search's prompts do not say how their media were processed.
    """
    contrast, skipped = None, True
    if is_decided(prompt):
        contrast, skipped = contrast_of(prompt), _SKIPS in source_of(prompt).keywords
    if not skipped or (sender := _sender(renderer)) is None:
        return
    features = list(request_media.of_prompt(prompt))
    if contrast is not None:
        features += [f for _, amateurs in contrast.own_prompts for f in amateurs.features]
    hashes = [feature.mm_hash for feature in features]
    renderer._mm_executor.submit(_tell, sender, renderer._mm_processor_only_cache, hashes)


def _sender(renderer: Any) -> Any:
    """Return the sender's cache, where it keeps the order of what is sent; else None."""
    if request_media.is_old():
        return None
    from vllm.multimodal.cache import LruKeyReplicatedSenderCache

    cache = renderer.mm_processor_cache
    return cache if isinstance(cache, LruKeyReplicatedSenderCache) else None


def _tell(sender: Any, processed: Any, hashes: Sequence[str]) -> None:
    for mm_hash in hashes:
        if processed.is_cached_item(mm_hash):  # else it was dropped since, or is too large
            sender.get_and_update_item(processed.get_and_update_item(None, mm_hash), mm_hash)
