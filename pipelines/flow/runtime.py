"""Speed and placement of parts: what never changes what comes out."""

from dataclasses import dataclass

import pydantic


class Runtime(pydantic.BaseModel):
    """Speed and placement of a stage's parts; an experiment sets it by stage. Never part of a fingerprint.

    `num_gpus` of a part, or of each of its workers where a stage starts some (`pretrain`). None: what the stage can use
    where the cluster has GPUs or can add some, else 0. A part with 0 sees no GPU.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    num_cpus: float = pydantic.Field(default=1.0, ge=0)
    num_gpus: float | None = pydantic.Field(default=None, ge=0)
    memory_bytes: int = pydantic.Field(default=0, ge=0)
    max_in_flight: int = pydantic.Field(default=64, gt=0)  # parts of a node submitted to Ray at a time
    max_retries: int = pydantic.Field(default=3, ge=0)  # of a part whose worker died

    @pydantic.field_validator("num_gpus")
    @classmethod
    def _gpus_are_whole(cls, num_gpus: float | None) -> float | None:
        if num_gpus is not None and num_gpus > 1 and num_gpus != int(num_gpus):
            raise ValueError(f"{num_gpus:g}: a share of one GPU (0.25), or whole ones; nothing spans one and a half")
        return num_gpus


@dataclass(frozen=True)
class Workers:
    """The processes that a node's one part starts itself and that all run at a time: `fewest` to `most` of them.

    `placement` is Ray's: "PACK", "SPREAD", "STRICT_PACK" (all on one machine) or "STRICT_SPREAD" (each on its own).
    """

    fewest: int
    most: int
    num_cpus: float = 1.0
    placement: str = "PACK"
