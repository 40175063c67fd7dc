"""Configuration of the pretrain stage."""

import pydantic

from pipelines.flow.stage import Workers
from pipelines.s5_pretrain.start import StartConfig
from x2vlm.config import FrozenConfig
from x2vlm.data.loading.config import DataConfig
from x2vlm.models.config import ModelConfig
from x2vlm.train.config import TrainConfig, TrainRuntime


class PretrainConfig(FrozenConfig):
    """Model, data and training; the defaults are the released base 4M recipe on 8 GPUs.

    Every global batch is split over `world_size` processes. It never changes the recipe, but the order of sums, and
    negatives of the matching loss are drawn within a process, so it changes the weights and is in the fingerprint.
    `record_samples` writes samples.parquet: about 0.3 ms per sample on one core, so a run of 10^8 samples may switch it
    off; the record can be computed for any step later.
    """

    model: ModelConfig = ModelConfig()
    start: StartConfig | None = None  # None: at random
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    world_size: int = pydantic.Field(default=8, ge=1)
    min_workers: int | None = pydantic.Field(default=None, ge=1)
    record_samples: bool = True

    @pydantic.model_validator(mode="after")
    def _start_fills_the_model(self) -> "PretrainConfig":
        if self.start is not None and self.start.text is not None and self.model.text.architecture != "bert":
            raise ValueError(
                f"start.text: an encoder of the architecture {self.model.text.architecture} fills no fusion layers; "
                "start from a trained model (`checkpoint` or `node`) and give the encoder as `swap_text`"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _sizes_fit(self) -> "PretrainConfig":
        for stream in self.data.streams:
            if stream.batch_size % self.world_size:
                raise ValueError(
                    f"stream {stream.label}: batch_size {stream.batch_size} is no multiple of world_size "
                    f"{self.world_size}"
                )
            if self.min_workers is not None and stream.batch_size % self.min_workers:
                raise ValueError(
                    f"stream {stream.label}: batch_size {stream.batch_size} is no multiple of min_workers "
                    f"{self.min_workers}"
                )
        if self.min_workers is not None and self.min_workers > self.world_size:
            raise ValueError(f"min_workers ({self.min_workers}) is more than world_size ({self.world_size})")
        if self.train.validate_every is not None and not self.data.validation_share:
            raise ValueError("train.validate_every needs held-out shards: set data.validation_share")
        labels = [stream.label for stream in self.data.streams]
        if self.train.matching_follows not in (None, *labels):
            raise ValueError(f"train.matching_follows: {self.train.matching_follows!r} is none of the streams {labels}")
        frames = self.data.examples.frames_per_clip
        has_clips = any(stream.kind == "video" for stream in self.data.streams)
        if has_clips and self.model.num_frames is not None and frames > self.model.num_frames:
            raise ValueError(f"clips have {frames} frames, the model has positions for {self.model.num_frames}")
        if self.data.examples.max_tokens > self.model.text.max_positions:
            raise ValueError("data.examples.max_tokens is more than model.text.max_positions")
        return self


def workers_of(config: PretrainConfig, runtime: TrainRuntime) -> Workers:
    """The processes that a training starts on Ray."""
    fewest = config.min_workers or config.world_size
    return Workers(fewest, config.world_size, runtime.cpus_per_worker, runtime.placement)
