from typing import Any

def is_bfloat16_supported() -> bool: ...

class FastLanguageModel:
    # With fast_inference vLLM is started beside the model; some keywords are for it.
    @staticmethod
    def from_pretrained(
        model_name: str = ...,
        max_seq_length: int = ...,
        dtype: Any = ...,
        load_in_4bit: bool = ...,
        load_in_8bit: bool = ...,
        load_in_16bit: bool = ...,
        full_finetuning: bool = ...,
        token: str | None = ...,
        device_map: Any = ...,
        trust_remote_code: bool = ...,
        use_gradient_checkpointing: Any = ...,
        use_exact_model_name: bool = ...,
        fast_inference: bool = ...,
        gpu_memory_utilization: float = ...,
        float8_kv_cache: bool = ...,
        random_state: int = ...,
        max_lora_rank: int = ...,
        disable_log_stats: bool = ...,
        enforce_eager: bool = ...,
        enable_prefix_caching: bool = ...,
        max_num_seqs: int = ...,
    ) -> tuple[Any, Any]: ...
    @staticmethod
    def get_peft_model(
        model: Any,
        r: int = ...,
        target_modules: list[str] = ...,
        lora_alpha: int = ...,
        lora_dropout: float = ...,
        bias: str = ...,
        use_gradient_checkpointing: Any = ...,
        random_state: int = ...,
        max_seq_length: int = ...,
        use_rslora: bool = ...,
        modules_to_save: Any = ...,
        init_lora_weights: Any = ...,
    ) -> Any: ...
    @staticmethod
    def for_inference(model: Any) -> Any: ...
    @staticmethod
    def for_training(model: Any, use_gradient_checkpointing: bool = ...) -> Any: ...
