# SPDX-License-Identifier: Apache-2.0
"""vLLM with a change, as a release might make it.

The changed vLLM is a folder of links to the installed one, in which some files are rewritten. It
stands first on ``sys.path``, so that every process and everything that reads source sees it.
"""

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

Files = dict[str, str]  # path below vllm/ -> changed text


@dataclass(frozen=True, slots=True)
class Target:
    """Where a method or function that is wrapped is defined.

    Attributes:
        where: The place, as ``patching.PatchPoint`` has it.
        file: Of the definition, below vllm/.
        cls: The class that defines it; "" for a function.
        parameter: Its first parameter behind ``self`` or ``cls``.
        called: Where other classes have methods of the same name: what its callers write in front
            of the name, as a regular expression.
        by: What callers write for the name, where it is a method that Python or torch calls.
        others: Further definitions that have to change along: (file, class).
        below: How the files of all that use it begin, where the same names mean something else
            elsewhere.
    """

    where: str
    file: str
    cls: str
    parameter: str = ""
    called: str = ""
    by: str = ""
    others: tuple[tuple[str, str], ...] = ()
    below: str | tuple[str, ...] = ""

    @property
    def name(self) -> str:
        return re.split("[.:]", self.where)[-1]

    @property
    def label(self) -> str:
        """What messages call the place."""
        return self.where.replace(":", ".")


_ARGS = "engine/arg_utils.py"
_CPU = "platforms/cpu.py"
_LOGGERS = "v1/metrics/loggers.py"
_ASYNC = "v1/engine/async_llm.py"
_OPENAI = "entrypoints/openai/"


def _protocol(name: str, cls: str, method: str, parameter: str = "max_tokens") -> Target:
    where = f"vllm.entrypoints.openai.{name}.protocol:{cls}.{method}"
    return Target(where, f"{_OPENAI}{name}/protocol.py", cls, parameter)


def _renderer(method: str, parameter: str) -> Target:
    where = f"vllm.renderers.base:BaseRenderer.{method}"
    called = "renderer|self"  # OnlineRenderer has a render_chat, too
    return Target(where, "renderers/base.py", "BaseRenderer", parameter, called)


# For the places see vllm_cold.vllm.places; a test compares the two.
TARGETS = (
    Target(
        "vllm.engine.arg_utils:EngineArgs.create_engine_config",
        _ARGS,
        "EngineArgs",
        "usage_context",
    ),
    Target("vllm.engine.arg_utils:EngineArgs.add_cli_args", _ARGS, "EngineArgs", "parser",
           called="EngineArgs"),
    Target("vllm.engine.arg_utils:EngineArgs.from_cli_args", _ARGS, "EngineArgs", "args",
           called="(?:Async)?EngineArgs"),
    Target("vllm.v1.engine.input_processor:InputProcessor.process_inputs",
           "v1/engine/input_processor.py", "InputProcessor", "request_id"),
    Target("vllm.v1.engine.async_llm:AsyncLLM.add_request", _ASYNC, "AsyncLLM", "request_id",
           called="await self"),
    *(_renderer(name, "prompts") for name in ("render_cmpl", "render_cmpl_async")),
    *(_renderer(name, "conversations") for name in ("render_chat", "render_chat_async")),
    *(Target(f"vllm.renderers.online_renderer:OnlineRenderer.{name}",
             "renderers/online_renderer.py", "OnlineRenderer", "request")
      for name in ("preprocess_chat", "preprocess_cmpl")),
    Target("vllm.platforms:current_platform.get_punica_wrapper", _CPU, "CpuPlatform"),
    Target("vllm.platforms:current_platform.check_and_update_config", _CPU, "CpuPlatform",
           "vllm_config"),
    Target("vllm.v1.worker.cpu_model_runner:CPUModelRunner.sample_tokens",
           "v1/worker/gpu_model_runner.py", "GPUModelRunner", "grammar_output",
           called="model_runner"),  # the executor has one, too
    Target("vllm.lora.layers:BaseLayerWithLoRA.set_mapping", "lora/layers/base.py",
           "BaseLayerWithLoRA", "punica_wrapper"),
    Target("vllm.lora.layers.base_linear:_get_lora_device", "lora/layers/utils.py", "",
           "base_layer"),
    Target("vllm.v1.sample.rejection_sampler:expand_batch_to_tokens",
           "v1/sample/rejection_sampler.py", "", "x"),
    Target("vllm.v1.spec_decode.llm_base_proposer:SpecDecodeBaseProposer.propose",
           "v1/spec_decode/llm_base_proposer.py", "SpecDecodeBaseProposer", called="self.drafter"),
    Target("vllm.v1.spec_decode.llm_base_proposer:SpecDecodeBaseProposer.dummy_run",
           "v1/spec_decode/llm_base_proposer.py", "SpecDecodeBaseProposer", called="self.drafter"),
    Target("vllm.v1.worker.gpu.spec_decode.target_dependent_ar.speculator:"
           "TargetDependentARSpeculator.propose",
           "v1/worker/gpu/spec_decode/target_dependent_ar/speculator.py",
           "TargetDependentARSpeculator", called="self.speculator"),
    Target("vllm.v1.worker.gpu.model_runner:GPUModelRunner.prepare_inputs",
           "v1/worker/gpu/model_runner.py", "GPUModelRunner", "scheduler_output",
           called="self"),
    Target("vllm.v1.worker.gpu.lora_utils:LoraState.make_lora_inputs",
           "v1/worker/gpu/lora_utils.py", "LoraState", "req_ids", called="self.lora_state"),
    Target("vllm.v1.sample.sampler:Sampler.forward", "v1/sample/sampler.py", "Sampler", "logits",
           called="self", by="sampler"),
    Target("vllm.v1.worker.gpu.sample.sampler:Sampler.__call__", "v1/worker/gpu/sample/sampler.py",
           "Sampler", "logits", called="self", by="sampler",
           below=("v1/worker/gpu/", "v1/watermarking/gpu_")),
    Target("vllm.v1.worker.gpu.sample.sampler:Sampler.__init__", "v1/worker/gpu/sample/sampler.py",
           "Sampler", called="Sampler", below=("v1/worker/gpu/", "v1/watermarking/gpu_")),
    Target("vllm.v1.worker.cpu.model_runner:CPUModelRunner.initialize_kv_cache",
           "v1/worker/gpu/model_runner.py", "GPUModelRunner", "kv_cache_config",
           called=r"self|runner|model_runner|super\(\)", below="v1/worker/gpu/",
           others=(("v1/worker/gpu_model_runner.py", "GPUModelRunner"),
                   ("v1/worker/cpu_model_runner.py", "CPUModelRunner"))),
    Target("vllm.v1.outputs:ModelRunnerOutput.__init__", "v1/outputs.py", "ModelRunnerOutput"),
    Target("vllm.v1.metrics.loggers:StatLoggerManager.__init__", _LOGGERS, "StatLoggerManager",
           "vllm_config"),
    Target("vllm.v1.metrics.loggers:StatLoggerManager.record", _LOGGERS, "StatLoggerManager",
           "scheduler_stats", called="logger_manager|logger_ref\\[0\\]"),
    Target("vllm.v1.engine.llm_engine:LLMEngine.get_metrics", "v1/engine/llm_engine.py",
           "LLMEngine", called="self.llm_engine"),
    Target("vllm.entrypoints.openai.models.serving:OpenAIServingModels.__init__",
           f"{_OPENAI}models/serving.py", "OpenAIServingModels", "engine_client"),
    Target("vllm.entrypoints.serve.engine.serving:BaseServing._check_model",
           "entrypoints/serve/engine/serving.py", "BaseServing", "request"),
    _protocol("completion", "CompletionRequest", "to_beam_search_params"),
    _protocol("chat_completion", "ChatCompletionRequest", "to_beam_search_params"),
    _protocol("completion", "CompletionRequest", "to_sampling_params"),
    _protocol("chat_completion", "ChatCompletionRequest", "to_sampling_params"),
    _protocol("responses", "ResponsesRequest", "to_sampling_params", "default_max_tokens"),
    Target("vllm.v1.engine.async_llm:AsyncLLM.generate", _ASYNC, "AsyncLLM", "prompt",
           called="engine_client", others=(("engine/protocol.py", "EngineClient"),)),
    Target("vllm:LLM.beam_search", "entrypoints/generate/beam_search/offline.py",
           "BeamSearchOfflineMixin", "prompts", called="llm"),
    Target("vllm.sampling_params:SamplingParams.verify", "sampling_params.py", "SamplingParams",
           "model_config", called="params"),
    Target("vllm.utils.argparse_utils:FlexibleArgumentParser.parse_known_args",
           "utils/argparse_utils.py", "FlexibleArgumentParser", "args"),
    Target("vllm.engine.arg_utils:EngineArgs.__post_init__", _ARGS, "EngineArgs"),
)  # fmt: skip

RENAMED = "_renamed"
# Python itself calls them by these names.
FIXED = ("__post_init__", "parse_known_args")


@cache
def installed() -> Path:
    """The folder of the installed vLLM, which is not imported."""
    spec = find_spec("vllm")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


@cache
def _sources() -> Files:
    root = installed()
    return {
        path.relative_to(root).as_posix(): path.read_text()
        for path in root.rglob("*.py")
        if "third_party" not in path.parts
    }


def tree(folder: Path, files: Files, version: str | None = None) -> Path:
    """Make the changed vLLM; ``folder`` is for ``sys.path``. It says that it is ``version``."""
    _mirror(installed(), folder / "vllm", files)
    for file, text in files.items():
        (folder / "vllm" / file).write_text(text)
    for libraries in installed().parent.glob("vllm*.libs"):
        (folder / libraries.name).symlink_to(libraries)
    if version is not None:
        info = folder / f"vllm-{version}.dist-info"
        info.mkdir()
        # "+cpu" is how vLLM recognizes its CPU build.
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n"
        )
    return folder


def _mirror(original: Path, copy: Path, files: Files, below: str = "") -> None:
    copy.mkdir(parents=True)
    for entry in original.iterdir():
        name = below + entry.name
        if entry.is_dir() and any(file.startswith(name + "/") for file in files):
            _mirror(entry, copy / entry.name, files, name + "/")
        elif name not in files and entry.name != "__pycache__":
            (copy / entry.name).symlink_to(entry)


def edit(file: str, pattern: str, replacement: str, files: Files | None = None) -> Files:
    """Replace a pattern that stands in the file once."""
    files = dict(files or {})
    text, count = re.subn(pattern, replacement, files.get(file, _sources()[file]), flags=re.M)
    assert count == 1, (file, pattern, count)
    return files | {file: text}


def rename(name: str, below: str | tuple[str, ...] = "") -> Files:
    """A distinctive name becomes another one, wherever it stands."""
    return _everywhere(rf"\b{name}\b", name + RENAMED, below=below)


def _everywhere(
    pattern: str,
    replacement: str,
    files: Files | None = None,
    below: str | tuple[str, ...] = "",
) -> Files:
    files = dict(files or {})
    for file, text in (_sources() | files).items():
        if not file.startswith(below):
            continue
        if (changed := re.sub(pattern, replacement, text)) != text:
            files[file] = changed
    return files


def renamed(target: Target) -> Files:
    """The method has another name; where Python gives the name, the class has."""
    if target.name == "__init__" or target.by:
        return rename(target.cls, target.below)
    if not target.called:
        return rename(target.name)
    files: Files = {}
    for file, cls in ((target.file, target.cls), *target.others):
        lines, method = _find(file, cls, target.name, files)
        row = method.lineno - 1
        lines[row] = lines[row].replace(f"def {target.name}", f"def {target.name}{RENAMED}")
        files[file] = "".join(lines)
    calls = rf"(?<!\w)((?:{target.called})\.{target.name})\b(?=\()"
    return _everywhere(calls, rf"\1{RENAMED}", files)


def _find(
    file: str, cls: str, name: str, files: Files
) -> tuple[list[str], ast.FunctionDef | ast.AsyncFunctionDef]:
    """Lines of a file, and a method in it."""
    text = files.get(file, _sources()[file])
    owner = _class(text, cls) if cls else ast.parse(text)
    for node in ast.walk(owner):  # there may be an `if` around it
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
            return text.splitlines(keepends=True), node
    raise AssertionError(f"{cls} in {file} has no {name}")


def _class(text: str, cls: str) -> ast.ClassDef:
    return next(
        node for node in ast.parse(text).body if isinstance(node, ast.ClassDef) and node.name == cls
    )


def moved(target: Target) -> Files:
    """The class has the method from a new base class."""
    text = _sources()[target.file]
    if target.cls == "ModelRunnerOutput":  # a dataclass: its __init__ is nowhere to be seen
        text = re.sub(r"^class ModelRunnerOutput:", "class _Moved:", text, flags=re.M)
        after = _class(text, "_Moved").end_lineno
        lines = text.splitlines(keepends=True)
        lines.insert(after or 0, "\n\nclass ModelRunnerOutput(_Moved):\n    pass\n")
        return {target.file: "".join(lines)}
    lines, method = _find(target.file, target.cls, target.name, {})
    start = min([method.lineno, *(d.lineno for d in method.decorator_list)]) - 1
    body = lines[start : method.end_lineno]
    indent = len(body[0]) - len(body[0].lstrip())
    lines[start : method.end_lineno] = [" " * indent + "pass\n"]
    owner = _class(text, target.cls)
    head = owner.lineno - 1
    bases = [ast.unparse(base) for base in (*owner.bases, *owner.keywords)]
    first = owner.body[0]
    end = min([first.lineno, *(d.lineno for d in getattr(first, "decorator_list", ()))]) - 1
    lines[head:end] = [f"class {target.cls}({', '.join(['_Moved', *bases])}):\n"]
    above = min([owner.lineno, *(d.lineno for d in owner.decorator_list)]) - 1
    lines[above:above] = ["class _Moved:\n", *(line[indent - 4 :] or "\n" for line in body), "\n\n"]
    return {target.file: "".join(lines)}


def _rewritten(target: Target, change: Callable[[ast.arguments], None], new: str) -> Files:
    """With other parameters; ``new`` is the name of the first one behind self in its body."""
    lines, method = _find(target.file, target.cls, target.name, {})
    first, last = method.lineno - 1, method.body[0].lineno - 1
    change(method.args)
    indent = re.match(" *", lines[first])
    assert indent is not None
    kind = "async def" if isinstance(method, ast.AsyncFunctionDef) else "def"
    returns = f" -> {ast.unparse(method.returns)}" if method.returns else ""
    head = f"{indent[0]}{kind} {method.name}({ast.unparse(method.args)}){returns}:\n"
    body = lines[last : method.end_lineno]
    if new != target.parameter:
        body = [re.sub(rf"(?<![.\w]){target.parameter}\b(?!=[^=])", new, line) for line in body]
    lines[first : method.end_lineno] = [head, *body]
    return {target.file: "".join(lines)}


def _calls(target: Target, files: Files, change: Callable[[ast.Call, list[str]], None]) -> Files:
    """Change the calls of a method, from the last one of each file to the first."""
    files = dict(files)
    name = target.cls if target.name == "__init__" else target.by or target.name
    called = re.compile(rf"(.*\b)?({target.called})" if target.called else ".*")
    for file, text in (_sources() | files).items():
        if name not in text or not file.startswith(target.below):
            continue
        calls = [
            node
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Call)
            and (
                (isinstance(node.func, ast.Name) and node.func.id == name == target.cls)
                or (
                    isinstance(node.func, ast.Attribute)
                    and node.func.attr == (target.by or target.name)
                    and called.fullmatch(ast.unparse(node.func.value).split("(")[0])
                )
            )
        ]
        lines = text.splitlines(keepends=True)
        for call in sorted(calls, key=lambda c: -(c.end_lineno or 0)):
            change(call, lines)
        if (changed := "".join(lines)) != text:
            files[file] = changed
    return files


def signature(target: Target) -> Files:
    """The first parameter has another name; those who give it by name follow."""
    old = target.parameter
    new = old + RENAMED

    def give_name(arguments: ast.arguments) -> None:
        for argument in (*arguments.args, *arguments.kwonlyargs):
            argument.arg = new if argument.arg == old else argument.arg

    def follow(call: ast.Call, lines: list[str]) -> None:
        for keyword in call.keywords:
            if keyword.arg == old:
                row = keyword.lineno - 1
                start = keyword.col_offset
                lines[row] = lines[row][:start] + new + lines[row][start + len(old) :]

    return _calls(target, _rewritten(target, give_name, new), follow)


def extended(target: Target) -> Files:
    """There is one more parameter, which callers give."""
    if target.cls == "ModelRunnerOutput":
        return edit(
            target.file,
            r"(^class ModelRunnerOutput:\n(?:.*\n)*?)(\n\n@dataclass|\n\nclass|\n\n[a-zA-Z#@])",
            r"\1    spare: int | None = None\n\2",
        )

    def add(arguments: ast.arguments) -> None:
        arguments.kwonlyargs.append(ast.arg("spare"))
        arguments.kw_defaults.append(ast.Constant(None))

    def give(call: ast.Call, lines: list[str]) -> None:
        assert call.end_lineno is not None and call.end_col_offset is not None
        row, end = call.end_lineno - 1, call.end_col_offset - 1
        before = "".join([*lines[call.lineno - 1 : row], lines[row][:end]]).rstrip()
        before = re.sub(r"\s*#[^\n]*$", "", before)
        comma = "" if before.endswith((",", "(")) else ", "
        lines[row] = f"{lines[row][:end]}{comma}spare=None{lines[row][end:]}"

    files = _rewritten(target, add, target.parameter)
    return files if target.name in FIXED else _calls(target, files, give)
