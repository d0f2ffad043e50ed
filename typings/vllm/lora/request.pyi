class LoRARequest:
    def __init__(
        self,
        lora_name: str,
        lora_int_id: int,
        lora_path: str = ...,
        base_model_name: str | None = ...,
        load_inplace: bool = ...,
    ) -> None: ...
