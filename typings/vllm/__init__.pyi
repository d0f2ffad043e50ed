from collections.abc import Callable, Sequence
from typing import Any, NotRequired, TypedDict

from .sampling_params import StructuredOutputsParams

class TokensPrompt(TypedDict):
    prompt_token_ids: list[int]
    prompt: NotRequired[str]

class SamplingParams:
    def __init__(
        self,
        n: int = ...,
        presence_penalty: float = ...,
        frequency_penalty: float = ...,
        repetition_penalty: float = ...,
        temperature: float = ...,
        top_p: float = ...,
        top_k: int = ...,
        min_p: float = ...,
        seed: int | None = ...,
        stop: str | list[str] | None = ...,
        ignore_eos: bool = ...,
        max_tokens: int | None = ...,
        min_tokens: int = ...,
        logprobs: int | None = ...,
        detokenize: bool = ...,
        skip_special_tokens: bool = ...,
        structured_outputs: StructuredOutputsParams | None = ...,
    ) -> None: ...

class CompletionOutput:
    index: int
    text: str
    token_ids: Sequence[int]
    cumulative_logprob: float | None
    logprobs: Any
    finish_reason: str | None
    stop_reason: int | str | None

class RequestOutput:
    request_id: str
    prompt: str | None
    prompt_token_ids: list[int] | None
    prompt_logprobs: Any
    outputs: list[CompletionOutput]
    finished: bool

class EngineCoreClient:
    def shutdown(self, timeout: float | None = ...) -> None: ...

class LLMEngine:
    engine_core: EngineCoreClient
    model_executor: Any

class LLM:
    llm_engine: LLMEngine
    # The keywords from `max_model_len` on go through **kwargs to EngineArgs.
    def __init__(
        self,
        model: str,
        *,
        tokenizer: str | None = ...,
        trust_remote_code: bool = ...,
        tensor_parallel_size: int = ...,
        dtype: Any = ...,
        quantization: Any = ...,
        seed: int = ...,
        gpu_memory_utilization: float = ...,
        enforce_eager: bool = ...,
        max_model_len: int | None = ...,
        max_num_seqs: int | None = ...,
        max_num_batched_tokens: int | None = ...,
        enable_sleep_mode: bool = ...,
        enable_lora: bool = ...,
        max_lora_rank: int = ...,
        model_impl: str = ...,
        distributed_executor_backend: Any = ...,
        logprobs_mode: str = ...,
    ) -> None: ...
    def generate(
        self,
        prompts: Any,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = ...,
        *,
        use_tqdm: bool | Callable[..., Any] = ...,
        lora_request: Any = ...,
    ) -> list[RequestOutput]: ...
    def get_tokenizer(self) -> Any: ...
    def sleep(self, level: int = ..., mode: str = ...) -> None: ...
    def wake_up(self, tags: list[str] | None = ...) -> None: ...
    def reset_prefix_cache(self, reset_running_requests: bool = ..., reset_connector: bool = ...) -> bool: ...
    def collective_rpc(
        self, method: Any, timeout: float | None = ..., args: tuple = ..., kwargs: dict | None = ...
    ) -> list: ...
