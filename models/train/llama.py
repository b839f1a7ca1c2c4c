"""Llama in PyTorch, small enough to read in one sitting, and its Hugging Face checkpoint form.

RMSNorm, rotary positions in the half-split form, SwiGLU, grouped-query attention, tied embedding and head, no biases.
Parameter names are those of the checkpoint, so loading and saving are copies.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

GIGANTIC = 15_000_000  # bytes of one weight file; larger checkpoints are sharded.


@dataclass(frozen=True)
class Config:
    """The sizes of a model; field names as in `config.json`."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int = 4096
    max_position_embeddings: int = 1024
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.num_attention_heads


SIZES = {
    "target": Config(320, 896, 8, 5, 5),
    "qualifier": Config(192, 512, 5, 3, 3),
    "draft": Config(96, 256, 4, 2, 2),
}


def rope_tables(config: Config) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each [positions, head_dim / 2]."""
    half = config.head_dim // 2
    frequency = config.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = torch.arange(config.max_position_embeddings, dtype=torch.float64)[:, None] * frequency
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates [batch, heads, positions, head_dim]; the two halves of a head are the two coordinates."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention of [batch, heads, positions, head_dim], all with the same heads.

    On a CPU the fused kernel takes longer than all matrix products of a small model together; query blocks against
    the keys that they may see are more than twice as fast, and skip most of what the mask hides.
    """
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)
    positions, width = query.shape[-2:]
    block = 128 if positions <= 512 else 256
    mask = torch.full((block, block), float("-inf"), dtype=query.dtype).triu(1)
    query = query * width**-0.5
    mixed = []
    for first in range(0, positions, block):
        end = min(first + block, positions)
        scores = query[:, :, first:end] @ key[:, :, :end].transpose(-1, -2)
        ahead = mask[: end - first, : end - first]
        scores = torch.cat((scores[..., :first], scores[..., first:] + ahead), dim=-1)
        mixed.append(torch.softmax(scores, dim=-1, dtype=scores.dtype) @ value[:, :, :end])
    return torch.cat(mixed, dim=-2)


class Attention(nn.Module):
    """Causal grouped-query attention."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.width = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        self.q_proj = nn.Linear(config.hidden_size, self.heads * self.width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.kv_heads * self.width, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.kv_heads * self.width, bias=False)
        self.o_proj = nn.Linear(self.heads * self.width, config.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[batch, positions, hidden] to the same."""
        batch, positions, _ = x.shape
        query = self.q_proj(x).view(batch, positions, self.heads, self.width).transpose(1, 2)
        key = self.k_proj(x).view(batch, positions, self.kv_heads, self.width).transpose(1, 2)
        value = self.v_proj(x).view(batch, positions, self.kv_heads, self.width).transpose(1, 2)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        if self.heads != self.kv_heads:
            key, value = (x.repeat_interleave(self.heads // self.kv_heads, dim=1) for x in (key, value))
        mixed = attend(query, key, value)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, positions, -1))


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, positions, hidden] to the same."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One pre-norm layer."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[batch, positions, hidden] to the same."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """Token ids to logits."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        cos, sin = rope_tables(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.apply(self.initialise)

    def initialise(self, module: nn.Module) -> None:
        """Normal weights of deviation 0.02; what writes to the residual stream shrinks with depth (GPT-2, sec. 2.3)."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, Layer):
            for linear in (module.self_attn.o_proj, module.mlp.down_proj):
                nn.init.normal_(linear.weight, std=0.02 / math.sqrt(2 * self.config.num_hidden_layers))

    def forward(self, ids: Tensor) -> Tensor:
        """Ids [batch, positions] to logits [batch, positions, vocabulary]."""
        positions = ids.shape[1]
        cos, sin = self.cos[:positions], self.sin[:positions]
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return F.linear(self.norm(x), self.embed_tokens.weight)


def load(folder: Path, config: Config) -> Llama:
    """Reads a checkpoint, sharded or not, as f32, into a model of `config`, which may have more layers.

    A layer that the checkpoint lacks begins as the identity: it writes nothing to the residual stream.
    """
    model = Llama(config)
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(file))
    named = {name.removeprefix("model."): tensor.float() for name, tensor in tensors.items()}
    for number, layer in enumerate(model.layers):
        mine = {f"layers.{number}.{name}": tensor for name, tensor in layer.state_dict().items()}
        if not mine.keys() & named.keys():
            silent = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
            named |= {name: tensor * (not name.endswith(silent)) for name, tensor in mine.items()}
    model.load_state_dict(named)
    return model


def save(model: Llama, folder: Path, tokenizer: Path) -> None:
    """Writes config, bf16 weights in shards below 16 MB, generation config and tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.safetensors*"):
        old.unlink()
    tensors = {f"model.{name}": tensor.detach().cpu().bfloat16() for name, tensor in model.state_dict().items()}
    shards: list[dict[str, Tensor]] = [{}]
    room = GIGANTIC
    for name, tensor in tensors.items():
        size = tensor.numel() * 2
        if size > room:
            shards.append({})
            room = GIGANTIC
        room -= size
        shards[-1][name] = tensor.contiguous()
    where = {}
    for number, shard in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)
        where.update(dict.fromkeys(shard, file))
    if len(shards) > 1:
        total = sum(tensor.numel() * 2 for tensor in tensors.values())
        write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})
    sizes = {name: getattr(model.config, name) for name in Config.__dataclass_fields__}
    write_json(
        folder / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            **sizes,
            "head_dim": model.config.head_dim,
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "attention_bias": False,
            "mlp_bias": False,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "torch_dtype": "bfloat16",
        },
    )
    write_json(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 0, "do_sample": False})
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    settings = tokenizer.with_name("tokenizer_config.json")
    if settings.is_file():
        (folder / "tokenizer_config.json").write_bytes(settings.read_bytes())


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes indented JSON with a final newline."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
