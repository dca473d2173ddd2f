# SPDX-License-Identifier: Apache-2.0
"""The front end's caches of processed media.

With its usual cache (the sender's), vLLM's front end sends an image once and from then on its hash,
and relies on the engine core getting requests in the order in which their images were processed. A
contrastive request whose amateurs' prompts are still to be made would be overtaken: a later request
would send the hash first, and fail. So on a server a contrastive request always sends its data, out
of a cache without that order (``always_sent``), and the sender's cache is told when it is sent
(``tell_sent``). Of media that are named by their uuids alone, only the engine core has the data:
together with others they are refused. Offline each prompt is sent before the next is processed. The
media of a refused request were never sent, and are forgotten (``kept``).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vllm_cold.settings.amateurs import MEDIA, media_parts
from vllm_cold.vllm import versions
from vllm_cold.vllm.frontend.media import make_readable
from vllm_cold.vllm.frontend.prompts import source_of

if TYPE_CHECKING:
    from vllm.v1.engine import EngineCoreRequest


def with_data(prompt: Any) -> list[str]:
    """The hashes of media that bring their data along, of a made prompt or of a request. The others
    are in the engine core's cache, as far as vLLM knows.
    """
    if not isinstance(prompt, Mapping):
        features = getattr(prompt, "mm_features", None) or ()
        return [f.mm_hash or f.identifier for f in features if f.data is not None]
    data = prompt.get("mm_kwargs") or {}
    return [
        each
        for kind, hashes in (prompt.get("mm_hashes") or {}).items()
        for i, each in enumerate(hashes)
        if data[kind][i] is not None
    ]


@contextmanager
def kept(renderer: Any, made: Sequence[Any], offline: bool = False) -> Iterator[None]:
    """Around what may refuse a request after its prompts were made: then the sender's cache forgets
    their media, which were never sent, or the next request with one of them would fail.

    Args:
        renderer: vLLM's.
        made: The prompts that it made, and requests that were made of them.
        offline: Whether it makes them in this thread. Else a thread of its own uses the cache, and
            has to forget them itself, before its next image.
    """
    try:
        yield
    except BaseException:  # also when a client hangs up
        seen = [each for one in made for each in _processed(one, always_sent=False)]
        cache = getattr(renderer, "mm_processor_cache", None)
        if seen and (forget := getattr(cache, "invalidate", None)) is not None:  # not in 0.23
            if (queue := getattr(renderer, "queue_mm_cache_invalidations", None)) is not None:
                queue(seen)  # since 0.33
            else:
                for mm_hash in seen:
                    if offline:
                        forget(mm_hash)
                    else:
                        renderer._mm_executor.submit(forget, mm_hash)
        raise


def _processed(made: Any, always_sent: bool) -> list[str]:
    """The hashes of the media that were processed for a prompt and its amateurs', if that was with
    the sender's cache (``always_sent`` False) or without (True).
    """
    source = source_of(made)
    if ("skip_mm_cache" in source.keywords) != always_sent:
        return []
    return [*with_data(made), *source.processed]


def always_sent(renderer: Any, messages: Sequence[Any]) -> bool | None:
    """Whether a contrastive request with these messages has to send its media's data; None where it
    has to and cannot, as some are named by their uuids alone.
    """
    if versions.is_before(0, 31):
        return False
    from vllm.multimodal import cache

    kinds = (cache.LruKeyReplicatedSenderCache, cache.ShmObjectStoreSenderCache)
    if not isinstance(renderer.mm_processor_cache, kinds):
        return False  # no cache, or one with which each request sends the data
    make_readable(messages)
    named = {_is_named_only(part) for message in messages for part in media_parts(message)}
    return None if len(named) > 1 else named == {False}


_TYPES = frozenset().union(*MEDIA.values())
# The key of a mapping in which such a part has its data.
_WITHIN = {"image_url": "url", "video_url": "url", "audio_url": "url", "input_audio": "data"}


def _is_named_only(part: Mapping[str, Any]) -> bool:
    """As vLLM reads it, to which empty data is none."""
    return part.get("uuid") is not None and all(
        _data(part, each) in (None, "") for each in _TYPES & part.keys()
    )


def _data(part: Mapping[str, Any], name: str) -> Any:
    found = part.get(name)
    return found.get(_WITHIN[name]) if name in _WITHIN and isinstance(found, Mapping) else found


def tell_sent(renderer: Any, prompt: Any) -> None:
    """Tell the sender's cache of a sent prompt's media, and its amateurs', that were processed
    without it: the engine core caches them too, and both have to drop the same ones. Done in vLLM's
    thread for media.
    """
    if not (hashes := _processed(prompt, always_sent=True)):
        return
    from vllm.multimodal.cache import LruKeyReplicatedSenderCache

    if isinstance(sender := renderer.mm_processor_cache, LruKeyReplicatedSenderCache):
        processed = renderer._mm_processor_only_cache
        renderer._mm_executor.submit(_tell, sender, processed, hashes)


def _tell(sender: Any, processed: Any, hashes: Sequence[str]) -> None:
    for each in hashes:
        if processed.is_cached_item(each):  # else it was dropped since, or is too large
            sender.get_and_update_item(processed.get_and_update_item(None, each), each)


def count_reads(renderer: Any, request: "EngineCoreRequest", num_sharing: int, n: int) -> None:
    """Correct how often workers will read media in shared memory before vLLM's sender may overwrite
    them: it counts one read for each prompt that was made, but each stream of each answer reads.

    Args:
        renderer: vLLM's.
        request: With the amateurs' media.
        num_sharing: How many amateurs read the expert's prompt.
        n: How many answers the request gets.
    """
    length = len(request.prompt_token_ids or ())
    counted = set()
    for feature in request.mm_features or ():
        if feature.data is None or "address" not in feature.data:
            continue
        readers = 1 + num_sharing if feature.mm_position.offset < length else 1
        # A prompt that several amateurs read was made once.
        known = 0 if id(feature.data) in counted else 1
        counted.add(id(feature.data))
        for _ in range(n * readers - known):
            renderer.mm_processor_cache.get_and_update_item(None, feature.mm_hash)
