# SPDX-License-Identifier: Apache-2.0
"""Tiny random vision-language and audio models, requests with images, videos and sounds in them,
and what the naive reference makes of these. A process of its own, ``python -m tests.engine.media
FOLDER NAME...``, for the reason of ``families``.
"""

import json
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from PIL import Image

from tests.engine import families
from tests.engine.families import HIDDEN, Family
from tests.engine.streams import RULES
from tests.naive import Amateur, Group
from tests.naive_media import NaiveMedia

MAX_TOKENS = 8
PATCH = 7  # pixels, of LLaVA; Qwen2-VL has four of 14 for a token


@dataclass(frozen=True)
class Picture:
    """An image of random stripes and blocks."""

    seed: int
    width: int = 28
    height: int = 28

    def make(self) -> Image.Image:
        rng = np.random.default_rng(self.seed)
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        pixels = np.kron(coarse, np.ones((self.height // 4, self.width // 4, 1), np.uint8))
        return Image.fromarray(pixels ^ rng.integers(0, 32, pixels.shape, dtype=np.uint8))


@dataclass(frozen=True)
class Video:
    """Some frames. Pairs of them are no more than tokens in a row: after a video M-RoPE goes on
    after its height and width in transformers, after its length as well in vLLM.
    """

    seed: int
    frames: int = 4

    def make(self) -> Any:
        return np.stack(
            [np.asarray(Picture(100 * self.seed + i, 84, 84).make()) for i in range(self.frames)]
        )


@dataclass(frozen=True)
class Sound:
    """Noise that swells, sampled at 16 kHz."""

    seed: int
    milliseconds: int = 200

    def make(self) -> Any:
        rng, num = np.random.default_rng(self.seed), 16 * self.milliseconds
        hum = np.sin(np.arange(num) * rng.uniform(0.05, 0.5))
        return (rng.uniform(0.1, 1) * hum + rng.normal(0, 0.3, num)).astype(np.float32)


@dataclass(frozen=True)
class Noised:
    """The expert's prompt with noise in its images; the steps of the diffusion."""

    steps: int


Medium = Picture | Video | Sound
Prompt = tuple[str | Medium, ...]
"""Texts and media in their order."""
# Of each kind of medium, what vLLM calls it and what transformers' processors do.
NAMES = {Picture: ("image", "images"), Video: ("video", "videos"), Sound: ("audio", "audio")}


@dataclass(frozen=True)
class MediaFamily:
    """A model that takes media.

    Attributes:
        model: The model.
        stands: What stands for a medium in a text.
        draw: The media of its requests.
        limits: Of each kind of medium, how many a prompt has at most.
        rounds: How many requests of each of ``KINDS`` there are.
    """

    model: Family
    stands: str = "<image>"
    draw: Callable[[int], Medium] = Picture
    limits: dict[str, int] = field(default_factory=lambda: {"image": 2})
    rounds: int = 2


def _sized(seed: int) -> Picture:
    """Of 1 to 16 tokens of Qwen's models."""
    return Picture(seed, *((112, 112), (28, 28), (84, 56), (56, 112), (56, 56))[seed % 5])


def _llava(tokenizer: Any) -> Any:
    size = {"height": 21, "width": 21}
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 21}, crop_size=size)
    return transformers.LlavaProcessor(
        images,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def _qwen2_audio(tokenizer: Any) -> Any:
    # vLLM takes spectra of 3000 only, which are these 30 seconds.
    sounds = transformers.WhisperFeatureExtractor(feature_size=16)
    return transformers.Qwen2AudioProcessor(sounds, tokenizer)


_PIXELS = {"shortest_edge": 28 * 28, "longest_edge": 112 * 112}


def _qwen2_vl(tokenizer: Any) -> Any:
    images = transformers.Qwen2VLImageProcessor(size=_PIXELS, patch_size=14)
    videos = transformers.Qwen2VLVideoProcessor(size=_PIXELS, patch_size=14)
    return transformers.Qwen2VLProcessor(images, tokenizer, videos)


_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
_QWEN2_VL = Family(
    "Qwen2VLConfig",
    {"rope_parameters": _MROPE},
    vision={"embed_dim": 64, "hidden_size": HIDDEN, "depth": 2, "num_heads": 2, "mlp_ratio": 2},
    special={
        "image_token_id": ("image_token", "<|image_pad|>"),
        "video_token_id": ("video_token", "<|video_pad|>"),
        "vision_start_token_id": ("vision_start", "<|vision_start|>"),
        "vision_end_token_id": ("vision_end", "<|vision_end|>"),
    },
    processor=_qwen2_vl,
)

MEDIA = {
    # With M-RoPE and without.
    "qwen2-vl": MediaFamily(
        _QWEN2_VL,
        "<|vision_start|><|image_pad|><|vision_end|>",
        _sized,
        {"image": 2, "video": 0},
    ),
    "llava-1.5": MediaFamily(
        Family(
            "LlavaConfig",
            {"model_type": "llama"},
            vision={
                "model_type": "clip_vision_model",
                "hidden_size": 64,
                "intermediate_size": 96,
                "num_attention_heads": 2,
                "num_hidden_layers": 3,
                "image_size": 21,
                "patch_size": PATCH,
            },
            whole={"image_seq_length": 9},
            special={"image_token_index": ("image_token", "<image>")},
            processor=_llava,
        )
    ),
    # Those below only in full.
    "qwen2-vl-video": MediaFamily(
        _QWEN2_VL,
        "<|vision_start|><|video_pad|><|vision_end|>",
        lambda seed: Video(seed, 2 + 2 * (seed % 3)),
        {"image": 0, "video": 2},
        rounds=1,
    ),
    "qwen2-audio": MediaFamily(
        Family(
            "Qwen2AudioConfig",
            {"model_type": "qwen2"},
            [],  # vLLM has no LoRA for it
            tower="audio_config",
            vision={
                "num_mel_bins": 16,
                "encoder_layers": 2,
                "encoder_attention_heads": 2,
                "encoder_ffn_dim": 96,
                "d_model": 64,
            },
            special={"audio_token_index": ("audio_token", "<|AUDIO|>")},
            more_special={
                "audio_bos_token": "<|audio_bos|>",
                "audio_eos_token": "<|audio_eos|>",
            },
            processor=_qwen2_audio,
        ),
        "<|audio_bos|><|AUDIO|><|audio_eos|>",
        lambda seed: Sound(seed, 150 + 130 * (seed % 5)),
        {"audio": 2},
        rounds=1,
    ),
}


CHATS = ("qwen2-vl", "llava-1.5")  # whose conversations are tested, too


@dataclass(frozen=True)
class Case:
    """A request.

    Attributes:
        kind: One of ``KINDS``.
        group: Its streams, without their prompts.
        prompts: Those, the expert's first; None for the expert's.
    """

    kind: str
    group: Group
    prompts: tuple[Prompt | Noised | None, ...]

    @property
    def expert_prompt(self) -> Prompt:
        own = self.prompts[0]
        assert isinstance(own, tuple)
        return own

    @property
    def all_prompts(self) -> list[Prompt | Noised]:
        return [self.expert_prompt if own is None else own for own in self.prompts]


KINDS = (
    "regular",
    "without",
    "other",
    "noise",
    "adapter",
    "several",
    "text",
    "regular text",
    "imagined",
    "adapters",
    "many",
    "end",
    "rule",
)
_LENGTHS = (1, 24, 7, 31, 2, 33, 40, 15)  # around the borders of blocks and chunks


def words(rng: random.Random, num: int) -> str:
    """A text of so many tokens."""
    return "".join(f" w{rng.randrange(411)}" for _ in range(num))


def make_cases(family: MediaFamily) -> list[Case]:
    """Requests of each of ``KINDS`` in turn that the family takes. Half of them begin with a text
    and a medium that others begin with, so that caches of prompts and of media have hits.
    """
    rng = random.Random(29)
    media = [family.draw(seed) for seed in range(5)]
    shared, cases = words(rng, 40), []
    for i in range(family.rounds * len(KINDS)):
        kind, number = KINDS[i % len(KINDS)], i // len(KINDS)
        begin = shared if i % 2 else words(rng, _LENGTHS[i % len(_LENGTHS)])
        first = media[0] if i % 2 else media[rng.randrange(5)]
        second = rng.choice([medium for medium in media if medium != first])
        end = words(rng, _LENGTHS[(3 * i + 1) % len(_LENGTHS)])
        expert = (None, "one", "two")[(number + i) % 3] if family.model.lora else None
        case = _case(kind, begin, (first, second), end, expert, number, rng)
        noised = any(isinstance(prompt, Noised) for prompt in case.prompts)
        if (family.model.lora or not any(case.group.adapters)) and (
            isinstance(first, Picture) or not noised
        ):
            cases.append(case)
    return cases


def _case(
    kind: str,
    begin: str,
    media: tuple[Medium, Medium],
    end: str,
    expert: str | None,
    number: int,
    rng: random.Random,
) -> Case:
    first, second = media
    seen, without_image, other = (begin, first, end), (begin + end,), (begin, second, end)
    adapter = expert or "one"
    another = "one" if adapter == "two" else "two"
    weight = (-1.0, -0.5, -2.0)[number % 3]
    alpha = (0.1, 0.0)[number % 2]
    own: tuple[Prompt | Noised | None, ...]
    amateurs: list[Amateur]
    expert_prompt: Prompt = seen
    match kind:
        case "regular":
            amateurs, own = [], ()
        case "regular text":
            expert_prompt, amateurs, own = without_image, [], ()
        case "text":
            expert_prompt, amateurs, own = without_image, [Amateur(weight, expert)], ((end,),)
        case "without":
            amateurs, own = [Amateur(weight, expert)], (without_image,)
        case "other":
            amateurs, own = [Amateur(weight, expert)], (other,)
        case "noise":
            amateurs, own = [Amateur(weight, expert)], (Noised(500),)
        case "imagined":
            expert_prompt, amateurs, own = without_image, [Amateur(weight, expert)], (seen,)
        case "adapter":
            expert, amateurs, own = adapter, [Amateur(weight)], (None,)
        case "adapters":
            expert = adapter
            amateurs, own = [Amateur(weight, another)], (other,)
        case "several":
            amateurs = [Amateur(-0.6, expert), Amateur(-0.5, expert)]
            own = (without_image, Noised(300))
        case "many":
            expert, expert_prompt = adapter, (begin, first, end, second, words(rng, 3))
            amateurs = [Amateur(-0.5, adapter), Amateur(-0.4), Amateur(0.3, another)]
            own = ((begin, first, end), None, without_image)
        case "end":
            expert_prompt = (begin + end, first, words(rng, 1))
            amateurs, own = [Amateur(weight, expert)], ((begin + end, second, words(rng, 1)),)
        case "rule":
            rule, parameters = RULES[number % len(RULES)]
            group = Group(
                (), expert, [Amateur(None, expert)], 0.0, MAX_TOKENS,
                rule=rule, rule_parameters=parameters,
            )  # fmt: skip
            return Case(kind, group, (seen, without_image))
        case _:
            raise ValueError(kind)
    return Case(kind, Group((), expert, amateurs, alpha, MAX_TOKENS), (expert_prompt, *own))


SYSTEM, QUESTION = " w11 w12 w13 w14", " w21 w22 w23"
SEEN, OTHER = Picture(7), Picture(8)


def _chat(content: Prompt, system: bool = True) -> Prompt:
    """What the template makes of a conversation; vLLM puts media before the text."""
    begin = f"system: {SYSTEM}\nuser: " if system else "user: "
    return (begin, *content, f"{QUESTION}\nassistant:")


def make_chats() -> list[Case]:
    """Conversations, of which ``tests/server/test_images.py`` asks."""

    def chat(expert: str | None, alpha: float, own: Prompt | Noised) -> Case:
        group = Group((), expert, [Amateur(-1.0, expert)], alpha, MAX_TOKENS)
        return Case("chat", group, (_chat((SEEN, "\n")), own))

    return [
        chat(expert, alpha, own)
        for expert in (None, "one")
        for alpha, own in (
            (0.1, Noised(500)),
            (0.0, _chat(())),
            (0.0, _chat((), system=False)),
            (0.0, _chat((OTHER, "\n"))),
        )
    ]


def text_of(family: MediaFamily, prompt: Prompt) -> str:
    """With what stands for the media."""
    return "".join(part if isinstance(part, str) else family.stands for part in prompt)


def media_of(prompt: Prompt, of_vllm: bool) -> dict[str, list[Any]]:
    """What vLLM, or a processor of transformers, is given of each kind."""
    found: dict[str, list[Any]] = {}
    for part in prompt:
        if not isinstance(part, str):
            found.setdefault(NAMES[type(part)][not of_vllm], []).append(part.make())
    return found


def of_vllm(family: MediaFamily, prompt: Prompt) -> dict[str, Any]:
    """The prompt as vLLM takes it."""
    data = media_of(prompt, of_vllm=True)
    if "audio" in data:
        data["audio"] = [(samples, 16000) for samples in data["audio"]]
    return {"prompt": text_of(family, prompt), **({"multi_modal_data": data} if data else {})}


def noised(image: Image.Image, steps: int) -> Image.Image:
    """What ``Amateur(images=Noise(steps))`` makes of an image."""
    from vllm_cold import Noise

    return Noise(steps)(image)


class Reference:
    """The naive reference's traces of a family's requests."""

    def __init__(self, family: MediaFamily, folder: Path) -> None:
        adapters = {name: folder / name for name in ("one", "two") if family.model.lora}
        self._family = family
        self.naive = NaiveMedia(folder / "model", adapters)

    def read(self, prompt: Prompt, steps: int | None = None) -> dict[str, Any]:
        """A prompt's tensors, with so much noise in its images."""
        media = media_of(prompt, of_vllm=False)
        if steps is not None:
            media["images"] = [noised(image, steps) for image in media["images"]]
        return self.naive.read(text_of(self._family, prompt), media)

    def trace(self, case: Case) -> dict[str, Any]:
        prompts = [
            self.read(case.expert_prompt, own.steps) if isinstance(own, Noised) else self.read(own)
            for own in case.all_prompts
        ]
        alone = replace(case.group, amateurs=(), rule=None)
        trace = self.naive.decode(case.group, prompts)
        assert max(trace.tokens) < families.VOCAB_SIZE  # or it would want an image
        return {
            "trace": asdict(trace),
            "alone": self.naive.decode(alone, prompts[:1]).tokens,
            "prompt": prompts[0]["input_ids"][0].tolist(),
        }


def main(folder: Path, names: Sequence[str]) -> None:
    """Write a folder for each family: model, adapters, and the traces of its cases."""
    for name in names:
        family, own = MEDIA[name], folder / name
        model = families.make_model(family.model, own / "model")
        for seed, adapter in enumerate(("one", "two") if family.model.lora else (), 1):
            families.make_adapter(family.model, model, own / adapter, seed)
        reference = Reference(family, own)
        asked = {"cases": make_cases(family), "chats": make_chats() if name in CHATS else []}
        traces = {kind: list(map(reference.trace, cases)) for kind, cases in asked.items()}
        assert "vllm" not in sys.modules
        (own / "traces.json").write_text(json.dumps(traces))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
