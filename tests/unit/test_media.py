# SPDX-License-Identifier: Apache-2.0
"""Requests with images, from a caller to what the engine core is sent, by vLLM's own renderer and
input processor on a vision-language model; no engine runs.
"""

import asyncio
import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image
from vllm import SamplingParams

from tests.front_end import ONE, TWO, Front, Online, make_seeing, protocol
from tests.requests import chat, xargs
from vllm_cold import Amateur, Blur, ColdParams, Noise
from vllm_cold.compat import patching, places, versions
from vllm_cold.compat.patching import bind
from vllm_cold.frontend import adapter_config, intake, media_cache, request_media
from vllm_cold.frontend.intake import FRONT_END
from vllm_cold.wire.stream import from_extra_args

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(versions.is_before("0.31"), reason="prompts with media are refused"),
]

PATCHES = 9  # tokens of an image
SYSTEM = {"role": "system", "content": " w1 w2"}


def picture(seed: int = 0, side: int = 21) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8))


def url(seed: int = 0) -> str:
    data = io.BytesIO()
    picture(seed).save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def of_url(seed: int = 0) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url(seed)}}


def pil(seed: int = 0) -> dict[str, Any]:
    return {"type": "image_pil", "image_pil": picture(seed)}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def seen(prompt: str, *images: Any, **more: Any) -> dict[str, Any]:
    """A completion's prompt with images."""
    data = {"image": list(images) if len(images) != 1 else images[0]}
    return {"prompt": prompt, "multi_modal_data": data, **more}


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Front:
    folder = make_seeing(tmp_path_factory.mktemp("seeing"))
    return Front(folder, limit_mm_per_prompt={"image": 3}, max_model_len=160)


@pytest.fixture(autouse=True)
def as_new(front: Front, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(adapter_config, "read_rank", lambda path: 8)
    front.serve()
    FRONT_END.begin()
    front.renderer.clear_mm_cache()
    front.renderer._mm_processor_only_cache.clear_cache()
    yield
    assert request_media._fetched.get() is None


@pytest.fixture
def online(front: Front) -> Online:
    return Online(front)


def render(front: Front, prompt: dict[str, Any]) -> Any:
    """What ``LLM.generate`` makes of a prompt with images."""
    (rendered,) = front.renderer.render_cmpl([prompt], front.renderer.default_cmpl_tok_params)
    return rendered


class Read:
    """What the streams of a request read: text, and where which image stands in it."""

    def __init__(self, front: Front, request: Any) -> None:
        stream = from_extra_args(request.sampling_params.extra_args)
        assert stream is not None
        features = list(request.mm_features or ())
        count = len(features) - sum(one.num_features for one in stream.amateurs)
        end = len(request.prompt_token_ids)
        self.stream, self.features = stream, features
        self.expert = [(f.mm_position.offset, f.identifier) for f in features[:count]]
        assert all(at < end for at, _ in self.expert)
        self.amateurs: list[Any] = []
        self.texts: list[str | None] = []
        for one in stream.amateurs:
            mine, count = features[count : count + one.num_features], count + one.num_features
            found = [(f.mm_position.offset - end, f.identifier) for f in mine]
            self.amateurs.append(None if one.prompt is None else found)
            self.texts.append(None if one.prompt is None else front.tokenizer.decode(one.prompt))
            for at, _ in found:
                assert one.prompt is not None
                image = front.tokenizer.convert_tokens_to_ids("<image>")
                assert one.prompt[at : at + PATCHES] == [image] * PATCHES
            end += len(one.prompt or ())
        assert count == len(features)


def read(front: Front, prompt: Any, *amateurs: Amateur, lora: Any = None, **more: Any) -> Read:
    params = ColdParams(amateurs=list(amateurs), max_tokens=3, **more)
    return Read(front, front.request(prompt, params, lora))


def hash_of(front: Front, image: Any) -> str:
    (image_hash,) = render(front, seen("<image>", image))["mm_hashes"]["image"]
    return str(image_hash)


def refusal(front: Front, prompt: Any, *amateurs: Amateur) -> str:
    return front.refusal(prompt, ColdParams(amateurs=list(amateurs), max_tokens=3), None)


# ---- offline -------------------------------------------------------------------------------------


def test_prompts_of_their_own(front: Front) -> None:
    """Each with its own images, other ones, or none; the same picture is known again."""
    expert = render(front, seen(" w1<image> w2", picture(1)))
    ids = front.tokenizer.encode(" w8<image> w9")
    found = read(
        front,
        expert,
        Amateur(prompt=" w3"),
        Amateur(prompt=seen(" w4 w5<image> w6", picture(2))),
        Amateur(prompt={"prompt_token_ids": ids, **_data(picture(1))}),
        Amateur(prompt=seen("<image> w6<image> w7", picture(3), picture(1))),
        Amateur(prompt=[user(pil(4), text(" w7"))]),
    )
    one, two, three, four = (hash_of(front, picture(seed)) for seed in (1, 2, 3, 4))
    assert found.expert == [(1, one)]
    assert found.amateurs == [
        [],
        [(2, two)],
        [(1, one)],
        [(0, three), (PATCHES + 1, one)],
        [(found.amateurs[4][0][0], four)],
    ]
    images = "<image>" * PATCHES
    assert found.texts == [
        " w3",
        f" w4 w5{images} w6",
        f" w8{images} w9",
        f"{images} w6{images} w7",
        f"user: {images}\n w7\nassistant:",
    ]


def _data(image: Any) -> dict[str, Any]:
    return {"multi_modal_data": {"image": image}}


def test_media_are_described_as_vllm_does(front: Front) -> None:
    prompt = render(front, seen("<image> w1<image>", picture(1), picture(2)))
    theirs = front.request(prompt, SamplingParams(max_tokens=2)).mm_features
    both = (request_media.of_prompt(prompt), theirs)
    ours, wanted = ([replace(one, data=None) for one in each] for each in both)
    assert ours == wanted and len(ours) == 2


def test_an_amateur_of_the_same_prompt(front: Front) -> None:
    """By its adapter alone: its media are the expert's, and are sent once."""
    found = read(front, render(front, seen("<image> w1", picture())), Amateur(), lora=ONE)
    assert found.amateurs == [None] and len(found.expert) == len(found.features) == 1


def test_an_expert_without_an_image(front: Front) -> None:
    for expert in (front.text(" w1 w2"), front.chat([SYSTEM])):
        found = read(front, expert, Amateur(prompt=seen(" w3<image> w4", picture(2))))
        assert found.expert == [] and found.amateurs == [[(1, hash_of(front, picture(2)))]]


def test_other_images(front: Front) -> None:
    """In a completion and in a chat, in PIL's form, as an array or as a URL's picture."""
    view = Noise(500)
    wanted = [hash_of(front, view(picture(seed))) for seed in (1, 2)]
    array = np.asarray(picture(2))
    expert = render(front, seen("<image> w1<image> w2", picture(1), array))
    found = read(front, expert, Amateur(images=view))
    assert found.amateurs == [[(0, wanted[0]), (PATCHES + 1, wanted[1])]]
    assert [at for at, _ in found.expert] == [at for at, _ in found.amateurs[0]]
    assert not {each for _, each in found.expert} & set(wanted)
    for parts in ((pil(1), pil(2)), (of_url(1), of_url(2))):
        expert = front.chat([SYSTEM, user(*parts, text(" w3"))])
        found = read(front, expert, Amateur(images=view))
        assert [each for _, each in found.amateurs[0]] == wanted
        assert found.texts == [front.tokenizer.decode(expert["prompt_token_ids"])]
    # One picture that is no list, and tokens in place of text.
    ids = front.tokenizer.encode("<image> w1")
    expert = render(front, {"prompt_token_ids": ids, **_data(picture(1))})
    assert read(front, expert, Amateur(images=view)).amateurs == [[(0, wanted[0])]]


def test_images_are_distorted_as_the_model_sees_them(front: Front) -> None:
    """Upright, RGB, what is transparent on white."""
    clear = Image.new("RGBA", (21, 21), (9, 9, 9, 0))
    found = read(front, render(front, seen("<image> w1", clear)), Amateur(images=Noise(500)))
    white = Noise(500)(Image.new("RGB", (21, 21), (255,) * 3))
    assert found.amateurs == [[(0, hash_of(front, white))]]
    # What is left as it is.
    plain = render(front, seen("<image> w1", Image.new("RGB", (21, 21))))
    assert "the amateur is the expert" in refusal(front, plain, Amateur(images=Blur(1)))


def test_messages_and_media_left_out(front: Front) -> None:
    """The images that are left are where the template puts them."""
    conversation = [SYSTEM, user(pil(1), text(" w3")), user(pil(2), text(" w5")), user(pil(3))]
    expert, images = front.chat(conversation), "<image>" * PATCHES
    found = read(front, expert, *(Amateur(without=each) for each in ("system,images", 1)))
    assert found.texts == [
        "user:  w3\nuser:  w5\nuser: \nassistant:",
        f"system:  w1 w2\nuser: {images}\n w5\nuser: {images}\nassistant:",
    ]
    two, three = (hash_of(front, picture(seed)) for seed in (2, 3))
    assert [[each for _, each in own] for own in found.amateurs] == [[], [two, three]]
    assert conversation[1]["content"][0]["type"] == "image_pil", "the caller's is as it was"
    completion = render(front, seen("<image> w1", picture()))
    message = refusal(front, completion, Amateur(without="images"))
    assert message.endswith("or say what the amateur reads with a prompt of its own")


def test_nothing_to_see_otherwise(front: Front) -> None:
    for expert in (front.text(" w1"), " w1", front.chat([SYSTEM]), front.chat([user(text(" w1"))])):
        message = refusal(front, expert, Amateur(images=Noise(5)))
        assert message == "amateurs[0]='noise:5': the prompt has no image"
    tensor = render(front, {"prompt": "<image>", **_data(np.zeros((21, 21, 3), np.float32))})
    message = refusal(front, tensor, Amateur(images=Noise(5)))
    assert "an image of the prompt is a ndarray; send it as a PIL image" in message


def test_prompts_that_vllm_has_not_made(front: Front) -> None:
    """As an async engine is given them."""
    found = read(front, seen("<image> w1", picture(1)), Amateur(images=Noise(9)))
    assert found.amateurs == [[(0, hash_of(front, Noise(9)(picture(1))))]]


def test_several_amateurs_share_what_is_the_same(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    distort = Mock(wraps=request_media.distorted)
    monkeypatch.setattr(request_media, "distorted", distort)
    own = seen("<image> w1", picture(5))
    found = read(
        front,
        render(front, seen("<image> w1", picture())),
        *[Amateur(images=Blur(1)), Amateur(images=Blur(1), weight=0.5), Amateur(prompt=own)] * 2,
    )
    assert distort.call_count == 1
    assert found.amateurs[0] == found.amateurs[1] == found.amateurs[3]
    assert found.amateurs[2] == found.amateurs[5]


def test_an_equal_prompt_of_another_image(front: Front) -> None:
    expert = render(front, seen("<image> w1", picture(1)))
    assert read(front, expert, Amateur(prompt=seen("<image> w1", picture(2))))
    assert "the amateur is the expert" in refusal(
        front, expert, Amateur(prompt=seen("<image> w1", picture(1)))
    )
    read(front, expert, Amateur(prompt=seen("<image> w1", picture(1)), lora_request=TWO), lora=ONE)


def test_named_images(front: Front) -> None:
    """With uuids of the caller's: other pictures have other names."""
    named = seen("<image> w1", picture(1), multi_modal_uuids={"image": ["mine"]})
    found = read(front, render(front, named), Amateur(images=Noise(5)))
    assert [each for _, each in found.expert] == ["mine"]
    assert found.amateurs == [[(0, hash_of(front, Noise(5)(picture(1))))]]
    # By its name alone, when the engine core has it.
    alone = {**named, "multi_modal_data": {"image": [None]}}
    found = read(front, render(front, alone), Amateur(prompt=" w2"))
    assert [each for _, each in found.expert] == ["mine"] and found.features[0].data is None
    found = read(front, front.text(" w2"), Amateur(prompt=alone))
    assert found.amateurs == [[(0, "mine")]]
    message = refusal(front, render(front, alone), Amateur(images=Noise(5)))
    assert "known by its uuid alone; send the image" in message


def test_what_cannot_be(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    expert = render(front, seen("<image> w1", picture()))
    own = Amateur(prompt=" w2")

    part = SamplingParams(extra_args={"cold_part": [0, 3]})
    with pytest.raises(ValueError, match="cold_part='0:3': is for a prompt of text alone"):
        front.request(expert, part)
    for own_prompt in (
        seen("<image>" * 4, *map(picture, range(4))),  # three is the most
        seen(" w1", picture()),  # nothing stands for it
        [user({"type": "image_url", "image_url": {"url": "x"}})],
    ):
        message = refusal(front, front.text(" w1"), Amateur(prompt=own_prompt))
        assert "no prompt can be made of it" in message
    config = front.config
    for owner, name, value, why in (
        (config.lora_config, "enable_tower_connector_lora", True, "_connector_lora is on, with"),
        (config.lora_config, "default_mm_loras", {"image": "/one"}, "gives such prompts adapters"),
        (config, "speculative_config", SimpleNamespace(method="eagle"), "drafter reads the media"),
        (config, "speculative_config", SimpleNamespace(method="ngram"), None),
        (config, "speculative_config", SimpleNamespace(method="ngram_gpu"), None),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, value)
            found = request_media.unsupported(config)
            assert found is None if why is None else why in str(found)
    with monkeypatch.context() as patched:
        patched.setattr(versions, "is_before", lambda *_: True)
        message = refusal(front, expert, own)
        assert "vllm-cold does not support prompts with media here: vLLM is older" in message
    # Text for such a model is as ever.
    assert read(front, front.text(" w1"), own).features == []


def test_the_encoders_room(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could never be encoded is refused: an image too large, and at a prompt's end."""
    admission = FRONT_END.of(front.processor)
    message = refusal(
        front, render(front, seen(" w1<image>", picture(1))), Amateur(images=Noise(5))
    )
    assert message.startswith("vllm-cold: this request has a prompt that ends with media")
    monkeypatch.setattr(admission, "encoder_cache_size", PATCHES - 1)
    message = refusal(front, front.text(" w1"), Amateur(prompt=seen("<image> w1", picture(1))))
    assert message.startswith("vllm-cold: this request has media of 9 embeddings")


def test_refused_images_are_forgotten(front: Front) -> None:
    """Of all prompts that were made: else the next request with one of them would send nothing."""
    cache = front.renderer.mm_processor_cache
    assert type(cache).__name__ == "LruKeyReplicatedSenderCache"
    expert = render(front, seen("<image> w1", picture(1)))
    good, bad = Amateur(prompt=seen("<image> w2", picture(2))), Amateur(prompt=" \ud7ff" * 99)
    refusal(front, expert, good, bad)
    for seed in (1, 2):
        found = render(front, seen("<image> w3", picture(seed)))
        (item,) = found["mm_kwargs"]["image"]
        assert item is not None, "its data comes along"


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
def test_an_async_engines_refused_images_are_forgotten_where_they_were_seen(
    error: type[BaseException], front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the thread of its media, before its next image."""
    renderer, threads = front.renderer, list[threading.Thread]()
    cache = type(renderer.mm_processor_cache)
    clear = lambda self: threads.append(threading.current_thread())  # noqa: E731
    monkeypatch.setattr(cache, "clear_cache", clear)
    with media_cache.forgotten_if_refused(renderer, offline=False):
        pass
    with pytest.raises(error), media_cache.forgotten_if_refused(renderer, offline=False):
        raise error
    of_media = renderer._mm_executor.submit(threading.current_thread).result()
    monkeypatch.undo()
    assert threads == [of_media]


# ---- on a server ---------------------------------------------------------------------------------


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The URLs that were decoded."""
    from vllm.multimodal.media.connector import MediaConnector

    found: list[str] = []
    original = MediaConnector._load_data_url

    def load(self: Any, address: str, *args: Any, **kwargs: Any) -> Any:
        found.append(address)
        return original(self, address, *args, **kwargs)

    monkeypatch.setattr(MediaConnector, "_load_data_url", load)
    patching.install(places.rows(places.FRONT_END))
    return found


def answered(online: Online, body: dict[str, Any], model: str = "base") -> tuple[Any, Read]:
    """The header, and what the streams read."""
    told, [request] = online.front.run(online.answer_async(body, model))
    return told, Read(online.front, request)


ASKED = chat(SYSTEM, user(of_url(1), text(" w3")))


def test_a_chat_over_http(online: Online, loaded: list[str]) -> None:
    """Media are decoded once, whatever reads them."""
    own = json.dumps([user(of_url(1), text(" w9"))])
    other = json.dumps([user(of_url(2), text(" w9"))])
    args = {
        "images": ["noise:500", "none", "", "", ""],
        "without": ["", "", "system", "", ""],
        "amateur_messages": ["", "", "", own, other],
    }
    for times in (1, 2):  # what another request fetches is its own
        told, found = answered(online, ASKED | xargs(**args))
        assert sorted(loaded) == sorted([url(1), url(2)] * times)
    one, two = (hash_of_url(online.front, seed) for seed in (1, 2))
    noised = hash_of(online.front, Noise(500)(picture(1)))
    assert [each for _, each in found.expert] == [one] and len(found.expert) == 1
    hashes = [[each for _, each in own] for own in found.amateurs]
    assert hashes == [[noised], [], [one], [one], [two]]
    assert [one["prompt"] for one in told["amateurs"]] == [
        "noise:500", "without images", "without system", "messages", "messages",
    ]  # fmt: skip


def test_defaults_and_presets(online: Online, front: Front) -> None:
    without, image = chat(SYSTEM, user(text(" w3"))), chat(user(of_url(1), text(" w3")))
    vcd, guide, off = {"preset": "vcd"}, {"without": "system"}, {"vllm_xargs": {"cold": 0}}
    for default, body, reads in (
        (None, ASKED | xargs(**vcd), "noise:500"),
        # Without an image they are decoded by the model alone, as with other presets.
        (None, without | xargs(**vcd), None),
        # What an engine leaves out of chats does not make another method of it.
        (guide, ASKED | xargs(**vcd), "noise:500"),
        ({**guide, "preset": "cfg"}, ASKED | xargs(**vcd), "noise:500"),
        ({**guide, "preset": "cfg"}, ASKED, "without system"),
        (guide, ASKED, "without system"),
        (guide, image, None),
        ({"without": "images"}, ASKED, "without images"),
        ({"without": "images"}, without, None),
        # Of an engine: for all chats with images, and no others.
        (vcd, ASKED, "noise:500"),
        (vcd, without, None),
        (vcd, ASKED | off, None),
        (vcd, ASKED | xargs(**guide), "without system"),
    ):
        front.serve(default=default)
        if reads is None:
            assert online.answer(body, "base") == ({"cold": 0}, [None])
            continue
        told, found = answered(online, body)
        assert told["prompt"] == reads
        assert len(found.amateurs[0]) == (reads != "without images") == len(found.features) - 1
        # Another message that is left out leaves the image.
        assert ("system" in (found.texts[0] or "")) == (reads != "without system")
        assert found.stream.method == told.get("preset", "custom")
        if reads == "noise:500":
            assert (told["preset"], told["alpha"], told["beta"]) == ("vcd", 0.1, 1.0)
    with pytest.raises(ValueError, match="the engine's default.*the prompt has no image"):
        online.answer(without | {"vllm_xargs": {"cold": 1}}, "base")
    # Offline completions have no messages to leave out.
    front.serve(default=guide)
    assert stream_of(front, seen("<image> w1", picture()), SamplingParams(max_tokens=2)) is None


def test_what_a_default_cannot_distort(front: Front) -> None:
    """A picture that is none is served as without; who asks is told."""
    front.serve(default={"preset": "vcd"})
    prompt = seen("<image> w1", picture())
    assert stream_of(front, prompt, SamplingParams(max_tokens=2)) is not None
    prompt["multi_modal_data"] = {"image": np.zeros((3, 56, 56), np.float32)}
    assert stream_of(front, prompt, SamplingParams(max_tokens=2)) is None
    asking = ColdParams(max_tokens=2, beta=1.0, amateur=Amateur(images=Noise(5)))
    with pytest.raises(ValueError, match="an image of the prompt is a ndarray"):
        stream_of(front, prompt, asking)
    ends = seen("w1 <image>", picture())  # with what its streams would keep
    assert stream_of(front, ends, SamplingParams(max_tokens=2)) is None
    with pytest.raises(ValueError, match="has a prompt that ends with media"):
        stream_of(front, ends, asking)


def test_what_is_distorted_is_bounded(online: Online, front: Front) -> None:
    asked = chat(user(of_url(1), text(" w3")))
    width, height = picture(1).size
    exactly, less = width * height / 1e6, width * height / 1e6 - 1e-6
    front.serve(default={"enabled": False, "max_megapixels": exactly})
    online.answer(asked | xargs(images="noise:5"), "base")
    front.serve(default={"enabled": False, "max_megapixels": less})
    with pytest.raises(ValueError, match="0.0 megapixels, and at most .* are distorted"):
        online.answer(asked | xargs(images="noise:5"), "base")
    front.serve(default={"preset": "vcd", "max_megapixels": less})
    assert online.answer(asked, "base") == ({"cold": 0}, [None]), "a default disables itself"


def test_no_client_waits_for_anothers_images(
    online: Online, front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are distorted one image after the other, in two threads of their own."""
    threads, order, distorted = list[str](), list[int](), request_media.distorted

    def slow(*args: Any) -> Any:
        threads.append(threading.current_thread().name)
        time.sleep(0.02)
        return distorted(*args)

    async def ask(num: int) -> None:
        await online.prepare(_request(chat(user(*[of_url(1)] * num)) | xargs(images="noise:5")))
        order.append(num)

    async def ask_both() -> None:
        many = asyncio.create_task(ask(3))
        await asyncio.sleep(0.01)
        await asyncio.gather(many, ask(1))

    monkeypatch.setattr(request_media, "distorted", slow)
    front.run(ask_both())
    assert order == [1, 3] and len(set(threads)) == 2


def stream_of(front: Front, prompt: Any, params: SamplingParams) -> Any:
    request = front.request(render(front, prompt), params, None)
    return from_extra_args(request.sampling_params.extra_args)


def test_refused_over_http(online: Online) -> None:
    broken, gone = (
        json.dumps([user({"type": "image_url", "image_url": {"url": where}})])
        for where in (1, "file:///nowhere.png")
    )
    # vLLM goes by the keys of parts that have a uuid.
    file = {"type": "text", "text": "x", "uuid": "u", "image_pil": "/etc/x.png"}
    for args, why in (
        ({"preset": "vcd", "amateur": "two"}, "cold_preset='vcd': contrasts .* cold_images"),
        ({"images": "noise:5", "without": "images"}, "the amateur has a prompt already, by"),
        ({"amateur_messages": broken}, "cold_amateur_messages=.*no prompt can be made of it"),
        ({"amateur_messages": gone}, "cold_amateur_messages=.*no prompt can be made of it"),
        (
            {"amateur_messages": json.dumps([user(file)])},
            "message 0 must not have image_pil; send images as image_url",
        ),
    ):
        with pytest.raises(ValueError, match=why):
            online.answer(ASKED | xargs(**args), "base")
    with pytest.raises(ValueError, match="cold_images='noise:5': the prompt has no image"):
        online.answer({"prompt": " w1", **xargs(images="noise:5")}, "base")


def test_regular_requests_are_as_ever(online: Online, front: Front) -> None:
    """They use the sender's cache, and what is contrasted leaves it alone until it is sent."""
    sender, one = front.renderer.mm_processor_cache, hash_of_url(front, 1)

    def sends_data(prompt: Any) -> bool:
        (image,) = prompt["mm_kwargs"]["image"]
        return image is not None

    prompt = online.prepared(ASKED | xargs(preset="vcd") | {"model": "base"})[0][0]
    assert not sender.is_cached_item(one) and sends_data(prompt)
    noised = front.request(prompt, SamplingParams(max_tokens=2), None).mm_features[1]
    assert noised.data is not None and not sender.is_cached_item(noised.mm_hash)
    # A regular request that overtakes it brings its data along; what is contrasted always does.
    assert sends_data(prepare(online, ASKED)) and sender.is_cached_item(one)
    assert not sends_data(prepare(online, ASKED))
    assert sends_data(prepare(online, ASKED | xargs(preset="vcd")))


def hash_of_url(front: Front, seed: int) -> str:
    """Of its bytes, which vLLM keeps; without the sender's cache."""
    return of_chat(front, of_url(seed))


def of_chat(front: Front, part: dict[str, Any]) -> str:
    from vllm.renderers.params import ChatParams

    params = ChatParams(chat_template_kwargs={"tokenize": False})
    renderer = front.renderer
    _, (found,) = renderer.render_chat(
        [[user(part)]], params, renderer.default_chat_tok_params, skip_mm_cache=True
    )
    return str(found["mm_hashes"]["image"][0])


def _request(body: dict[str, Any]) -> Any:
    return protocol(body)(model="base", max_tokens=4, **body)


def prepare(online: Online, body: dict[str, Any]) -> Any:
    (prompt,) = online.front.run(online.prepare(_request(body)))
    return prompt


async def accept(*_: Any) -> None:
    """As an engine takes a request."""


def send(front: Front, prompt: Any, add_request: Any = accept) -> None:
    """Add a request to an async engine, and wait for the thread of its media."""
    engine = SimpleNamespace(input_processor=front.processor)
    params = SamplingParams(max_tokens=2)
    front.run(bind(intake.wrap_add_request, add_request)(engine, "r", prompt, params))
    front.renderer._mm_executor.submit(bool).result()


def test_the_sender_is_told_when_it_is_sent(online: Online, front: Front) -> None:
    """Of the expert's images and of what its amateurs see."""
    sender = front.renderer.mm_processor_cache
    noised = {"type": "image_pil", "image_pil": Noise(500)(picture(1))}
    both = hash_of_url(front, 1), of_chat(front, noised)
    prompt = prepare(online, ASKED | xargs(preset="vcd"))
    assert not any(map(sender.is_cached_item, both))
    send(front, prompt)
    assert all(map(sender.is_cached_item, both))


def test_what_a_server_refuses_empties_no_cache(online: Online, front: Front) -> None:
    """Else one client could have the images of all others processed again and again."""

    async def refuse(*_: Any) -> None:
        raise ValueError("too long")

    prepare(online, ASKED)
    for body in ({"prompt": " w1"}, ASKED, ASKED | xargs(preset="vcd")):
        with pytest.raises(ValueError, match="too long"):
            send(front, prepare(online, body), refuse)
    front.renderer._mm_executor.submit(bool).result()
    assert front.renderer.mm_processor_cache.is_cached_item(hash_of_url(front, 1))


def test_the_sender_is_told_of_a_beam_searchs_images(online: Online, front: Front) -> None:
    """Where a default leaves nothing out: vLLM's prompts of its steps carry nothing of ours."""
    front.serve(default={"without": "system"})
    request = _request(chat(user(of_url(1), text(" w3")), use_beam_search=True))
    [prompt] = front.run(online.prepare(request))
    assert request.to_beam_search_params(4, {}) is not None
    send(front, {key: value for key, value in prompt.items() if not key.startswith("cold_")})
    assert front.renderer.mm_processor_cache.is_cached_item(hash_of_url(front, 1))


def test_images_that_a_client_names_only(online: Online, front: Front) -> None:
    """By their uuids, once a contrasted chat has sent them; as of any cache, they may be gone."""
    named = {"type": "image_url", "image_url": {"url": url(1)}, "uuid": "mine"}
    alone = {**named, "image_url": None}
    asked = chat(SYSTEM, user(alone, of_url(2), text(" w3"))) | xargs(without="system")
    online.prepared(chat(SYSTEM, user(named, text(" w3")), model="base"))
    with pytest.raises(ValueError, match="Cache miss for image at index 0 but data is not provid"):
        online.answer(asked, "base")
    answered(online, chat(SYSTEM, user(named)) | xargs(without="system"))
    _, found = answered(online, asked)
    assert [each for _, each in found.expert] == ["mine", hash_of_url(front, 2)]
    assert all(feature.data is not None for feature in found.features)


def test_shared_memory(front: Front) -> None:
    """Where vLLM counts one reader of each image."""
    expert = render(front, seen("<image> w1", picture()))
    expert["mm_kwargs"]["image"][0]["address"] = 1
    assert "mm_processor_cache_type=" in refusal(front, expert, Amateur(images=Noise(5)))
