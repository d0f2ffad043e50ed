from typing import Any

class StructuredOutputsParams:
    def __init__(
        self,
        json: Any = ...,
        regex: str | None = ...,
        choice: list[str] | None = ...,
        grammar: str | None = ...,
        json_object: bool | None = ...,
    ) -> None: ...
