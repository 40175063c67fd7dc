"""X2-VLM: one image tower, one text tower, fusion layers between them, and five small heads.

B rows, C channels, H W pixels, F frames, M images, R region rows, P patches, N = P + 1, L tokens, K masked positions,
D width, E width of the comparison space, V vocabulary.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from x2vlm.errors import ConfigError
from x2vlm.models.config import ModelConfig
from x2vlm.models.fusion import FusionEncoder, VisionMemory
from x2vlm.models.heads import WordHead, build_mlp_head
from x2vlm.models.text import TextEncoder, build_text_encoder
from x2vlm.models.tokens import VisionTokens
from x2vlm.models.vision import VisionEncoder, average_frames, pool_patches

# Range to which the temperature is clamped in every training step, as in the reference.
TEMPERATURE_RANGE = (0.001, 0.5)


class X2VLM(nn.Module):
    """The model of arXiv 2211.12402; every method is one step of it, so that losses and tasks can reuse results."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = VisionEncoder(config.vision)
        self.text = build_text_encoder(config.text)
        self.fusion = FusionEncoder(config.fusion, config.text.width, config.vision.width)
        self.text.add_drop_paths(config.text_drop_path, config.text_drop_path_parity)
        self.fusion.set_drop_paths(config.cross_drop_path, config.text_drop_path_parity)
        self.vision_proj = nn.Linear(config.vision.width, config.embed_dim)
        self.text_proj = nn.Linear(config.text.width, config.embed_dim)
        self.temperature = nn.Parameter(torch.tensor(config.temperature))
        self.match_head = build_mlp_head(config.text.width, 2)
        self.box_head = build_mlp_head(config.text.width, 4)
        text = config.text
        self.word_head = WordHead(text.width, text.vocab_size, text.layer_norm_eps, config.tie_words, text.init_std)
        self.frame_position: nn.Parameter | None = None
        if config.num_frames is not None:
            self.frame_position = nn.Parameter(torch.empty(1, config.num_frames, 1, config.vision.width))
            nn.init.trunc_normal_(self.frame_position, std=0.02)
        if config.vision.temporal == "attention":
            assert config.num_frames is not None
            # Last, so that all other initial values are those of the model that averages frames.
            self.vision.add_temporal(config.num_frames)

    def encode_image(self, images_BCHW: Tensor) -> VisionTokens:
        """One row per image: token 0 (the mean of the patches) and the patches; nothing is masked."""
        vision: VisionTokens = self.vision(images_BCHW)
        return vision

    def encode_video(self, frames_BFCHW: Tensor) -> VisionTokens:
        """One row per clip: the mean over its frames of (frame tokens + frame position).

        With `vision.temporal: attention` the tower's patches attend to those of the other frames first.
        ConfigError if a clip has more frames than the model has positions. Without positions any count is allowed.
        """
        num_frames = frames_BFCHW.shape[1]
        self.require_frames(num_frames)
        return self.join_frames(self.vision(frames_BFCHW.flatten(0, 1), num_frames=num_frames), num_frames)

    def require_frames(self, num_frames: int) -> None:
        """ConfigError if the model has fewer positions than `num_frames`."""
        known = self.config.num_frames
        if known is not None and num_frames > known:
            raise ConfigError(f"clips have {num_frames} frames, the model has positions for {known}: set num_frames")

    def join_frames(self, frames: VisionTokens, num_frames: int) -> VisionTokens:
        """One row per clip from encoded frames, those of a clip adjacent."""
        return average_frames(frames, num_frames, self.frame_position)

    def pool_regions(self, vision: VisionTokens, image_of_R: Tensor, patch_mask_RP: Tensor) -> VisionTokens:
        """One row per region of already encoded images.

        `image_of_R` are row numbers of `vision`; `patch_mask_RP` is true for the patches under the box and has no
        column for token 0. Token 0 is the mean over those patches; all patches are kept, the others are masked out
        for the text. The mask of a row must contain a patch: without one, token 0 is zero.
        """
        row_of_R = image_of_R
        if vision.image_of_B is not None:
            image_of_R = vision.image_of_B[image_of_R]
        summary_RD = pool_patches(vision.patches_MPD, image_of_R, patch_mask_RP)
        if vision.patch_mask_BP is None:
            # A region of all patches equals the image bit for bit: sums in another order would differ by 1e-7.
            is_whole_R1 = patch_mask_RP.bool().all(dim=1, keepdim=True)
            summary_RD = torch.where(is_whole_R1, vision.summary_BD[row_of_R].to(summary_RD.dtype), summary_RD)
        return VisionTokens(
            summary_BD=summary_RD,
            patches_MPD=vision.patches_MPD,
            image_of_B=image_of_R,
            patch_mask_BP=patch_mask_RP.bool(),
        )

    def encode_text(self, ids_BL: Tensor, mask: Tensor, positions_BL: Tensor | None = None) -> Tensor:
        """States (B, L, D) after the text-only layers.

        `mask` is true or 1 on real tokens (B, L), or where a token (second dimension) may attend (B, L, L).
        `positions_BL` count from 0 in a text; None: 0, 1, 2, ...
        """
        text_BLD: Tensor = self.text(ids_BL, mask, positions_BL)
        return text_BLD

    def image_memory(self, vision: VisionTokens) -> VisionMemory:
        """Image keys and values of all fusion layers, for any number of calls of `fuse`."""
        return self.fusion.image_memory(vision)

    def fuse(
        self,
        text_BLD: Tensor,
        mask: Tensor,
        vision: VisionTokens | VisionMemory | None,
        causal: bool = False,
    ) -> Tensor:
        """States (B, L, D) after the fusion layers; without `vision` they run self-attention and feed-forward only.

        `mask` as in `encode_text`.
        """
        memory = self.image_memory(vision) if isinstance(vision, VisionTokens) else vision
        fused_BLD: Tensor = self.fusion(text_BLD, mask, memory, causal)
        return fused_BLD

    def project(self, vision: VisionTokens, text_BLD: Tensor) -> tuple[Tensor, Tensor]:
        """Image and text features (B, E) of length 1, from token 0 of each."""
        return self.project_vision(vision), self.project_text(text_BLD)

    def project_vision(self, vision: VisionTokens) -> Tensor:
        """Image features (B, E) of length 1, at least in float32."""
        return _unit_length(self.vision_proj(vision.summary_BD))

    def project_text(self, text_BLD: Tensor) -> Tensor:
        """Text features (B, E) of length 1, at least in float32."""
        return _unit_length(self.text_proj(text_BLD[:, 0]))

    def match(self, fused_BLD: Tensor) -> Tensor:
        """Logits (B, 2) from token 0; class 1 means the text describes the image."""
        logits_B2: Tensor = self.match_head(fused_BLD[:, 0])
        return logits_B2

    def locate(self, fused_BLD: Tensor) -> Tensor:
        """Boxes (B, 4) as (cx, cy, w, h) in [0, 1] of the image side, from token 0."""
        raw_B4: Tensor = self.box_head(fused_BLD[:, 0])
        return raw_B4.sigmoid()

    def predict_words(self, fused_BLD: Tensor, positions_BK: Tensor) -> Tensor:
        """Logits (B, K, V) at the given positions only."""
        index_BKD = positions_BK[:, :, None].expand(-1, -1, fused_BLD.shape[-1])
        logits_BKV: Tensor = self.word_head(fused_BLD.gather(1, index_BKD), self.text.word_embeddings.weight)
        return logits_BKV

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Keeps the temperature within TEMPERATURE_RANGE; the training loop calls it before every forward pass."""
        self.temperature.clamp_(*TEMPERATURE_RANGE)


def _unit_length(features_BE: Tensor) -> Tensor:
    """Rows of length 1; in bfloat16 rounding alone would make them longer or shorter by up to 0.4 %."""
    wide = features_BE if features_BE.dtype == torch.float64 else features_BE.float()
    return normalize(wide, dim=-1)


def build_model(config: ModelConfig) -> X2VLM:
    """A randomly initialised model; drawn from torch's global generator."""
    return X2VLM(config)


def swap_text_encoder(model: X2VLM, encoder: PreTrainedModel) -> X2VLM:
    """A model with `encoder` as text tower and an untied MLM head; all other modules are shared with `model`.

    The vision side, the fusion layers and the other heads keep their weights (X2-VLM 4.5: the multilingual model). Of
    the MLM head the transform does; its output matrix and bias, which depend on the vocabulary, are new.
    ConfigError if the widths differ. `x2vlm.models.checkpoints.swap` does the same with files.
    """
    text = TextEncoder(encoder)
    if text.width != model.config.text.width:
        raise ConfigError(f"text encoder has width {text.width}, the fusion layers take {model.config.text.width}")
    cfg = encoder.config
    vocab_size = text.word_embeddings.num_embeddings
    with torch.device("meta"):
        swapped = X2VLM(model.config)
    swapped.vision, swapped.fusion = model.vision, model.fusion
    swapped.vision_proj, swapped.text_proj = model.vision_proj, model.text_proj
    swapped.match_head, swapped.box_head = model.match_head, model.box_head
    swapped.temperature, swapped.frame_position = model.temperature, model.frame_position
    text.add_drop_paths(model.config.text_drop_path, model.config.text_drop_path_parity)
    swapped.text = text
    swapped.word_head = WordHead(text.width, vocab_size, cfg.layer_norm_eps, tied=False)
    swapped.word_head.transform = model.word_head.transform
    # A module of its own, whose epsilon is that of the new encoder.
    swapped.word_head.norm.weight, swapped.word_head.norm.bias = model.word_head.norm.weight, model.word_head.norm.bias
    changed = model.config.text.model_copy(
        update={
            "architecture": cfg.model_type,
            "num_layers": cfg.num_hidden_layers,
            "num_heads": cfg.num_attention_heads,
            "intermediate": cfg.intermediate_size,
            "vocab_size": vocab_size,
            "max_positions": cfg.max_position_embeddings,
            "type_vocab_size": cfg.type_vocab_size,
            "pad_id": cfg.pad_token_id,
            "layer_norm_eps": cfg.layer_norm_eps,
        }
    )
    swapped.config = model.config.model_copy(update={"text": changed, "tie_words": False})
    return swapped
