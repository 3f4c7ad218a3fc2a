"""The vLLM engine, one code path for GPUs and the CPU build."""

import importlib.util
import shutil
from pathlib import Path
from typing import Any

from sweetspot.model import Model
from sweetspot.sampler import Engine, Response, VllmSampler

WAY_OUT = "run with sampler=transformers"


def load(sampler: VllmSampler, model: Model, ends: list[int]) -> Engine:
    """The engine with the model in memory.

    On a processor, blocks are 32 tokens (128 by default, where a short prompt never meets the prefix cache), and a
    whole tile's prompts fit one step: a request with its own seed cannot be prefilled in parts there.

    Raises:
        RuntimeError: when vLLM cannot run on this machine.
    """
    check_machine("sampler", WAY_OUT)
    import torch
    from vllm import LLM, SamplingParams

    length = sampler.max_prompt_tokens + sampler.max_tokens
    on_cpu = not torch.cuda.is_available()
    room = sampler.tile_prompts * sampler.max_prompt_tokens
    cpu: dict[str, Any] = {"block_size": 32, "max_num_batched_tokens": max(16384, length, room)} if on_cpu else {}
    engine: Any = LLM(
        model=model.path,
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
        dtype=sampler.dtype,
        seed=sampler.seed,
        max_model_len=length,
        max_num_seqs=sampler.max_num_seqs,
        gpu_memory_utilization=sampler.gpu_memory_utilization,
        enforce_eager=sampler.enforce_eager,
        tensor_parallel_size=sampler.tensor_parallel,
        generation_config="vllm",
        **cpu,
    )

    def sample(prompts: list[list[int]], seeds: list[int], n: int) -> list[list[Response]]:
        engine.reset_prefix_cache()  # a tile must not depend on the tiles before it
        settings = [
            SamplingParams(
                n=n,
                seed=seed,
                temperature=sampler.temperature,
                top_p=sampler.top_p,
                max_tokens=sampler.max_tokens,
                stop_token_ids=ends,
                logprobs=0,  # of the sampled token alone, before temperature and top_p
                detokenize=False,
            )
            for seed in seeds
        ]
        results = engine.generate([{"prompt_token_ids": ids} for ids in prompts], settings, use_tqdm=False)
        for asked, result in zip(prompts, results, strict=True):
            if list(result.prompt_token_ids) != asked:
                raise RuntimeError("sampler: vLLM changed the prompt's token ids")
        return [[_response(output) for output in sorted(result.outputs, key=lambda o: o.index)] for result in results]

    return sample


def _response(output: Any) -> Response:
    return Response(list(output.token_ids), output.finish_reason, float(output.cumulative_logprob))


def check_machine(at: str, way_out: str) -> None:
    """Refuse a machine on which vLLM would fail later and less clearly.

    Args:
        at: the component that wants vLLM ("sampler"), for the error.
        way_out: what the user can do instead.

    Raises:
        RuntimeError: naming what is missing.
    """
    if importlib.util.find_spec("vllm") is None:
        raise RuntimeError(f"{at}: vLLM is not installed; ./install.sh installs it where it can run, or {way_out}")
    import torch

    if torch.cuda.is_available():
        return
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if "avx2" not in flags and "avx512f" not in flags:
        raise RuntimeError(f"{at}: vLLM's CPU build needs AVX2 or AVX-512, which this processor lacks; {way_out}")
    if not (shutil.which("g++") or shutil.which("clang++")):
        raise RuntimeError(f"{at}: vLLM's CPU build needs a C++ compiler (g++ or clang++); install one or {way_out}")
