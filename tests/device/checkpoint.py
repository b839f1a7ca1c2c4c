"""A Llama checkpoint of random weights in a known shape, with the bundled tokenizer padded to its vocabulary.

    python3 checkpoint.py 1B /tmp/models/1B

Needs PyTorch, which makes 16 GB in seconds on a GPU. Figures with such a model are of its steps; what it says means nothing.
"""

import argparse
import json
import struct
from pathlib import Path

import torch

from model import SHAPES

BUNDLED = Path(__file__).resolve().parent.parent.parent / "models/target"
CONTEXT = 8192


def tensors(shape):
    """Name and shape of every tensor, in the order in which they are written."""
    hidden, inner, query, key = shape.hidden, shape.inner, shape.heads * shape.dim, shape.kv_heads * shape.dim
    yield "model.embed_tokens.weight", (shape.vocab, hidden)
    for i in range(shape.layers):
        layer = f"model.layers.{i}."
        yield layer + "input_layernorm.weight", (hidden,)
        for name, outputs in (("q", query), ("k", key), ("v", key)):
            yield f"{layer}self_attn.{name}_proj.weight", (outputs, hidden)
        yield layer + "self_attn.o_proj.weight", (hidden, query)
        yield layer + "post_attention_layernorm.weight", (hidden,)
        yield layer + "mlp.gate_proj.weight", (inner, hidden)
        yield layer + "mlp.up_proj.weight", (inner, hidden)
        yield layer + "mlp.down_proj.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)
    if not shape.tied:
        yield "lm_head.weight", (shape.vocab, hidden)


def write_weights(shape, path):
    header, end = {}, 0
    for name, size in tensors(shape):
        begin, end = end, end + 2 * torch.Size(size).numel()
        header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(1)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, size in tensors(shape):
            if len(size) == 1:
                data = torch.ones(size, dtype=torch.bfloat16)
            else:
                data = (torch.randn(size, device=device, dtype=torch.bfloat16) * size[1] ** -0.5).cpu()
            file.write(data.view(torch.uint8).numpy().data)


def write(shape, folder):
    folder.mkdir(parents=True, exist_ok=True)
    bundled = json.loads((BUNDLED / "config.json").read_text())
    config = bundled | {
        "hidden_size": shape.hidden, "intermediate_size": shape.inner, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads, "head_dim": shape.dim,
        "vocab_size": shape.vocab, "max_position_embeddings": CONTEXT, "rope_theta": 500000.0,
        "tie_word_embeddings": shape.tied,
    }
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((BUNDLED / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    known = 1 + max([*vocab.values(), *(token["id"] for token in tokenizer["added_tokens"])])
    vocab.update({f"<unused {i}>": i for i in range(known, shape.vocab)})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    write_weights(shape, folder / "model.safetensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=[shape.name for shape in SHAPES])
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    write(next(shape for shape in SHAPES if shape.name == arguments.shape), arguments.folder)


if __name__ == "__main__":
    main()
