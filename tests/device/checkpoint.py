"""A Llama checkpoint of random weights in a known shape, with the bundled tokenizer padded to its vocabulary.

    python3 checkpoint.py 1B /tmp/models/1B

Needs nothing but Python: a block of normal numbers is written again and again. Figures with such a model are of its steps; what it
says means nothing.
"""

import argparse
import json
import math
import random
import struct
from array import array
from pathlib import Path

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


# Numbers of a block: a prime, so that no matrix has equal rows.
BLOCK = 1_000_003


def bf16(numbers):
    """Rounded to nearest, ties to even, as bytes."""
    bits = array("I", array("f", numbers).tobytes())
    return array("H", ((b + 0x7FFF + (b >> 16 & 1)) >> 16 for b in bits)).tobytes()


def write_repeated(file, block, begin, size):
    """Writes `size` bytes of `block` over and over, from `begin` on."""
    while size > 0:
        part = memoryview(block)[begin:begin + size]
        file.write(part)
        begin, size = 0, size - len(part)


def write_weights(shape, path):
    header, end = {}, 0
    for name, size in tensors(shape):
        begin, end = end, end + 2 * math.prod(size)
        header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    dice = random.Random(1)
    normal = [dice.gauss() for _ in range(BLOCK)]
    blocks = {}
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, size in tensors(shape):
            if len(size) == 1:
                file.write(bf16([1.0]) * size[0])
                continue
            inputs = size[1]
            if inputs not in blocks:
                blocks[inputs] = bf16([x * inputs ** -0.5 for x in normal])
            write_repeated(file, blocks[inputs], 2 * dice.randrange(BLOCK), 2 * math.prod(size))


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
