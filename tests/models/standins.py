"""Small modules with the names and row orders of the original LLaVA and of InternVL2's own code."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HIDDEN, HEADS, VALUES, WIDTH, WORDS = 32, 4, 2, 8, 40


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Attention(nn.Module):
    """InternLM2's: rows of wqkv are queries, key and value of one head after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.head_dim, self.group = WIDTH, HEADS // VALUES
        self.wqkv = nn.Linear(HIDDEN, VALUES * (self.group + 2) * WIDTH, bias=True)
        self.wo = nn.Linear(HEADS * WIDTH, HIDDEN, bias=False)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
        b, t, _ = hidden_states.shape
        rows = self.wqkv(hidden_states).view(b, t, VALUES, self.group + 2, WIDTH)
        q = rows[..., : self.group, :].reshape(b, t, HEADS, WIDTH)
        k, v = (rows[..., i, :].repeat_interleave(self.group, 2) for i in (-2, -1))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask)
        return self.wo(out.transpose(1, 2).reshape(b, t, -1))


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w3 = (nn.Linear(HIDDEN, 48, bias=False) for _ in range(2))
        self.w2 = nn.Linear(48, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class InternLM2Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = RMSNorm(HIDDEN), RMSNorm(HIDDEN)
        self.attention, self.feed_forward = Attention(), FeedForward()

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        x = hidden_states
        x = x + self.attention(self.attention_norm(x), attention_mask)
        return (x + self.feed_forward(self.ffn_norm(x)),)


class InternLM2Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(WORDS, HIDDEN)
        self.layers = nn.ModuleList(InternLM2Block() for _ in range(2))
        self.norm = RMSNorm(HIDDEN)

    def forward(
        self, inputs_embeds: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> SimpleNamespace:
        b, t, _ = inputs_embeds.shape
        seen = torch.ones(t, t, dtype=torch.bool).tril().expand(b, 1, t, t)
        if attention_mask is not None:
            seen = seen & attention_mask.bool()[:, None, None] | torch.eye(t, dtype=torch.bool)
        x = inputs_embeds
        for layer in self.layers:
            x = layer(x, attention_mask=seen)[0]
        return SimpleNamespace(last_hidden_state=self.norm(x))


class InternLM2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = InternLM2Model()
        self.output = nn.Linear(HIDDEN, WORDS, bias=False)


class VisionAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(HIDDEN, 3 * HIDDEN), nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(b, n, c))


class VisionBlock(nn.Module):
    """InternViT's, with layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(HIDDEN), nn.LayerNorm(HIDDEN)
        self.attn = VisionAttention()
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(HIDDEN, 48), nn.Linear(48, HIDDEN)
        self.mlp.forward = lambda x: self.mlp.fc2(F.gelu(self.mlp.fc1(x)))  # type: ignore[assignment]
        self.ls1, self.ls2 = (nn.Parameter(torch.full((HIDDEN,), 0.5)) for _ in range(2))

    def forward(self, hidden_states: Tensor) -> Tensor:
        x = hidden_states + self.attn(self.norm1(hidden_states)) * self.ls1
        return x + self.mlp(self.norm2(x)) * self.ls2


class InternVLChatModel(nn.Module):
    """Two image tokens a tile of 8 x 8 pixels."""

    def __init__(self, decoder: str) -> None:
        super().__init__()
        self.config = SimpleNamespace(
            model_type="internvl_chat", llm_config=SimpleNamespace(model_type=decoder)
        )
        self.language_model = InternLM2() if decoder == "internlm2" else llama()
        self.vision_model = nn.Module()
        self.vision_model.patches = nn.Linear(48, HIDDEN)
        self.vision_model.encoder = nn.Module()
        self.vision_model.encoder.layers = nn.ModuleList(VisionBlock() for _ in range(2))
        self.mlp1 = nn.Sequential(
            nn.LayerNorm(2 * HIDDEN),
            nn.Linear(2 * HIDDEN, HIDDEN),
            nn.GELU(),
            nn.Linear(HIDDEN, HIDDEN),
        )

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def get_input_embeddings(self) -> nn.Module:
        inner: Any = self.language_model.model
        found: nn.Module = getattr(inner, "tok_embeddings", None) or inner.embed_tokens
        return found

    def extract_feature(self, pixel_values: Tensor) -> Tensor:
        tiles = pixel_values.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5)
        x = self.vision_model.patches(tiles.reshape(len(pixel_values), 4, 48))
        for layer in self.vision_model.encoder.layers:
            x = layer(x)
        out: Tensor = self.mlp1(x.reshape(len(x), 2, 2 * HIDDEN))
        return out


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=HIDDEN,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=HEADS,
            num_key_value_heads=VALUES,
            vocab_size=WORDS,
            initializer_range=0.2,
            pad_token_id=0,
        )
    )


def llava_llama() -> Any:
    """`LlavaLlamaForCausalLM`: tower and projector inside the decoder."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    model = llama()
    tower = nn.Module()
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    tower.vision_tower = CLIPVisionModel(
        CLIPVisionConfig(**shape, num_hidden_layers=2, image_size=8, patch_size=4)
    )
    model.model.vision_tower = tower
    model.model.mm_projector = nn.Sequential(
        nn.Linear(16, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN)
    )
    model.config.model_type = "llava_llama"

    def encode_images(images: Tensor) -> Tensor:
        seen = tower.vision_tower(images, output_hidden_states=True).hidden_states[-2][:, 1:]
        out: Tensor = model.model.mm_projector(seen)
        return out

    model.encode_images = encode_images
    return model
