"""The vLLM engine, one code path for GPUs and the CPU build."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

from sweetspot.model import Model
from sweetspot.sampler import Engine, Response, VllmSampler

WAY_OUT = "run with sampler=transformers"


def load(sampler: VllmSampler, model: Model, ends: list[int]) -> Engine:
    """vLLM with the model in memory, ready to sample.

    Raises:
        RuntimeError: when vLLM cannot run on this machine.
    """
    return sampling(open_engine(sampler, model), sampler, ends)


def open_engine(sampler: VllmSampler, model: Model) -> Any:
    """The vLLM engine with the sampler's settings.

    On a processor, blocks are 32 tokens (128 by default, where a short prompt never meets the prefix cache), and all
    prompts that can be in flight fit one step: vLLM 0.32 stops with "CPU Generator does not use offset" when it
    prefills a request with its own seed in parts.
    """
    check_machine("sampler", WAY_OUT)
    import torch
    from vllm import LLM

    length = sampler.max_prompt_tokens + sampler.max_tokens
    on_cpu = not torch.cuda.is_available()
    in_flight = min(sampler.max_num_seqs, sampler.tile_prompts * sampler.tile_samples)
    room = in_flight * sampler.max_prompt_tokens
    cpu: dict[str, Any] = {"block_size": 32, "max_num_batched_tokens": max(16384, length, room)} if on_cpu else {}
    weights: dict[str, Any] = {"quantization": sampler.quantization}
    weights |= {"enable_lora": True, "max_lora_rank": _rank(sampler.adapter)} if sampler.adapter else {}
    return LLM(
        model=model.path,
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
        load_format="safetensors",  # pickled weights could run code
        dtype=sampler.dtype,
        seed=sampler.seed,
        max_model_len=length,
        max_num_seqs=sampler.max_num_seqs,
        gpu_memory_utilization=sampler.gpu_memory_utilization,
        enable_prefix_caching=sampler.prefix_caching,
        enable_chunked_prefill=sampler.chunked_prefill,
        enforce_eager=sampler.enforce_eager,
        kv_cache_dtype=sampler.kv_cache_dtype,
        tensor_parallel_size=sampler.tensor_parallel,
        generation_config="vllm",
        **weights,
        **cpu,
    )


def sampling(engine: Any, sampler: VllmSampler, ends: list[int]) -> Engine:
    """The engine as one that samples tiles."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    adapter = None if sampler.adapter is None else LoRARequest("adapter", 1, sampler.adapter)

    def sample(prompts: list[list[int]], seeds: list[int], n: int) -> list[list[Response]]:
        engine.reset_prefix_cache()  # a tile must not depend on the tiles before it
        own = sampler.seeding == "request"  # vLLM gives response i of a request the seed of its first + i
        if not own:
            engine.collective_rpc(_reseed, args=(seeds[0],))
        settings = [
            SamplingParams(
                n=n,
                seed=seed if own else None,
                temperature=sampler.temperature,
                top_p=sampler.top_p,
                max_tokens=sampler.max_tokens,
                stop_token_ids=ends,
                logprobs=0,  # of the sampled token alone, before temperature and top_p
                detokenize=False,
            )
            for seed in seeds
        ]
        asked_for = [{"prompt_token_ids": ids} for ids in prompts]
        results = engine.generate(asked_for, settings, use_tqdm=False, lora_request=adapter)
        for asked, result in zip(prompts, results, strict=True):
            if list(result.prompt_token_ids) != asked:
                raise RuntimeError("sampler: vLLM changed the prompt's token ids")
        return [[_response(output) for output in sorted(result.outputs, key=lambda o: o.index)] for result in results]

    return sample


def _response(output: Any) -> Response:
    return Response(list(output.token_ids), output.finish_reason, float(output.cumulative_logprob))


def _rank(adapter: str) -> int:
    """The rank of a LoRA adapter, rounded up to one that vLLM takes."""
    rank = int(json.loads((Path(adapter) / "adapter_config.json").read_text())["r"])
    return next(size for size in (8, 16, 32, 64, 128, 256, 320, 512) if size >= rank)


def _reseed(worker: Any, seed: int) -> None:  # noqa: ARG001 - vLLM's signature
    """Start the random stream of a worker's sampler anew."""
    import torch

    torch.manual_seed(seed)


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
