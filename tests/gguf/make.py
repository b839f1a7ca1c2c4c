#!/usr/bin/env python3
"""Writes the GGUF files of this folder, and what a model in them computes.

    python3 -m venv venv && venv/bin/pip install gguf==0.19.0 numpy tokenizers && venv/bin/python make.py

The files are written, and their blocks dequantised, by the gguf package of the ggml project. Logits come from the few lines
of numpy below, in double precision; token ids from the tokenizers package with the definitions that the models' publishers
use. Tests of this repository read the results and never run this script.
"""

import json
import os

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import GGUFWriter, dequantize, quantize
from gguf.constants import GGML_QUANT_SIZES
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

HERE = os.path.dirname(os.path.abspath(__file__))
RNG = np.random.default_rng(7)

# Where a block has its half-precision scales.
SCALES = {
    T.Q8_0: [0], T.Q5_0: [0], T.Q4_0: [0], T.Q4_1: [0, 2], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
}
# Scales that give weights of about 0.1.
SIZE = {
    T.Q8_0: 1e-3, T.Q5_0: 6e-3, T.Q4_0: 1e-2, T.Q4_1: 1e-2, T.Q4_K: 2e-4, T.Q5_K: 1e-4, T.Q6_K: 4e-5,
}


def random_blocks(kind, rows, inputs):
    """Blocks of random bits with sensible scales."""
    per, size = GGML_QUANT_SIZES[kind]
    blocks = RNG.integers(0, 256, (rows * inputs // per, size), dtype=np.uint8)
    for n, at in enumerate(SCALES[kind]):
        scale = RNG.uniform(0.5, 1.5, len(blocks)) * SIZE[kind]
        if kind in (T.Q4_1, T.Q4_K, T.Q5_K) and n == 1:
            # The minimum that puts the middle of the codes at about 0.
            scale *= {T.Q4_1: -7.5, T.Q4_K: 7.5, T.Q5_K: 15.5}[kind]
        else:
            scale *= RNG.choice([-1, 1], len(blocks))
        blocks[:, at:at + 2] = scale.astype(np.float16).view(np.uint8).reshape(-1, 2)
    return blocks.reshape(rows, -1)


def blocks_file():
    """A tensor of each format, with its weights as F32 beside it. Scales have both signs, and one is subnormal."""
    out = GGUFWriter(os.path.join(HERE, "blocks.gguf"), "blocks")
    for kind in SCALES:
        blocks = random_blocks(kind, 5, 512)
        at = SCALES[kind][0]
        blocks[0, at:at + 2] = np.array([3], dtype=np.uint16).view(np.uint8)
        out.add_tensor(kind.name, blocks, raw_dtype=kind)
        weights = dequantize(blocks, kind)
        out.add_tensor(kind.name + ".weights", weights.astype(np.float32))
        if kind in (T.Q8_0, T.Q4_0):
            # What quantising those weights to this format gives.
            values = (RNG.standard_normal((3, 64)) * 0.1).astype(np.float32)
            values[1, :32] = 0
            out.add_tensor(kind.name + ".values", values)
            out.add_tensor(kind.name + ".quantised", quantize(values, kind), raw_dtype=kind)
    write(out)


def write(out):
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def byte_level_vocabulary(merges):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return specials, specials + alphabet + ["".join(merge) for merge in merges]


MERGES = [
    ("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("i", "n"), ("Ġ", "a"), ("e", "r"), ("1", "2"), ("12", "3"), ("Ġ", "1"),
    ("l", "o"), ("lo", "w"), ("Ġ", "Ġ"), ("ĠĠ", "ĠĠ"), ("Ã", "©"), ("r", "e"), ("'", "re"), ("Ġ", "w"), ("o", "r"),
    ("l", "d"), ("or", "ld"), ("Ġw", "orld"), ("Ċ", "Ċ"), ("n", "g"), ("in", "g"), (".", "Ċ"),
]

LINES = [
    "Hello world, lower the ring", "the year 1234567 and 12 123", "naïve café é e\u0301", "  two    spaces\n\n\nlines  \n",
    "don't we're WE'RE I'll", "日本語 и русский 🙂", "<|im_start|>user\nhi<|im_end|>\n", "a\tb\r\nc", "", " ", "x=1;\n  y==22",
]

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def byte_level(pre):
    """The tokenizer as its publishers define it."""
    specials, tokens = byte_level_vocabulary(MERGES)
    vocab = {token: n for n, token in enumerate(tokens)}
    found = Tokenizer(models.BPE(vocab=vocab, merges=MERGES, ignore_merges=pre == "llama-bpe"))
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    cut = lambda regex: pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(regex), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    found.pre_tokenizer = {
        "gpt-2": plain,
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain]),
        "llama-bpe": cut(LLAMA3),
        "qwen2": cut(QWEN2),
    }[pre]
    if pre == "qwen2":
        found.normalizer = normalizers.NFC()
    found.decoder = decoders.ByteLevel()
    found.add_special_tokens(specials)
    return found, tokens


def add_byte_level(out, pre):
    _, tokens = byte_level(pre)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre(pre)
    out.add_token_list(tokens)
    out.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    out.add_token_merges([" ".join(merge) for merge in MERGES])
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_add_bos_token(False)
    return len(tokens)


# A SentencePiece vocabulary: pieces and their scores.
PIECES = ["▁", "▁t", "he", "▁the", "in", "▁a", "er", "lo", "low", "ing", "▁w", "or", "ld", "orld", "▁world"] + list(
    "etaoinshrdlcumwfgypbvkjxqzHWE.,'!?0123456789") + ["▁▁"]


def sentence_pieces():
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)] + PIECES
    types = [2, 3, 3] + [6] * 256 + [1] * len(PIECES)
    scores = [0.0] * 259 + [-float(n) for n in range(len(PIECES))]
    return tokens, types, scores


def sentence_piece_tokenizer():
    """As transformers converts such a vocabulary for Llama 2, without the template that puts <s> in front."""
    tokens, types, scores = sentence_pieces()
    vocab = {token: n for n, token in enumerate(tokens)}
    merges = []
    for piece, kind, score in zip(tokens, types, scores):
        if kind != 1:
            continue
        local = [(piece[:n], piece[n:], score) for n in range(1, len(piece)) if piece[:n] in vocab and piece[n:] in vocab]
        merges += sorted(local, key=lambda merge: (vocab[merge[0]], vocab[merge[1]]))
    merges.sort(key=lambda merge: (merge[2], len(merge[0]), len(merge[1])), reverse=True)
    found = Tokenizer(models.BPE(
        vocab=vocab, merges=[merge[:2] for merge in merges], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    found.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    found.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    found.add_special_tokens(["<unk>", "<s>", "</s>"])
    return found


class Model:
    """A Llama whose weights are written as blocks, and computed with as numpy has them."""

    def __init__(self, out, arch, heads, kv_heads, dim, hidden, inner, vocab):
        self.out, self.weights = out, {}
        self.heads, self.kv_heads, self.dim, self.hidden, self.inner, self.vocab = heads, kv_heads, dim, hidden, inner, vocab
        self.layers, self.arch, self.theta, self.eps = 0, arch, 10_000.0, 1e-5

    def matrix(self, name, outputs, inputs, kind, size=1.0):
        if kind in (T.F32, T.F16, T.BF16):
            values = (RNG.standard_normal((outputs, inputs)) * 0.08 * size).astype(np.float32)
            blocks = quantize(values, kind)
            if kind == T.F32:
                self.out.add_tensor(name, values)
            else:
                self.out.add_tensor(name, blocks, raw_dtype=kind)
        else:
            blocks = random_blocks(kind, outputs, inputs)
            self.out.add_tensor(name, blocks, raw_dtype=kind)
        self.weights[name] = dequantize(blocks, kind).reshape(outputs, inputs).astype(np.float64)

    def vector(self, name, size, around=1.0):
        values = (around + RNG.standard_normal(size) * 0.1).astype(np.float32)
        self.out.add_tensor(name, values)
        self.weights[name] = values.astype(np.float64)

    def layer(self, q, k, v, o, gate, up, down, bias=False):
        n, hidden, inner = self.layers, self.hidden, self.inner
        query, key = self.heads * self.dim, self.kv_heads * self.dim
        at = lambda part: f"blk.{n}.{part}.weight"
        self.vector(at("attn_norm"), hidden)
        self.matrix(at("attn_q"), query, hidden, q)
        self.matrix(at("attn_k"), key, hidden, k)
        self.matrix(at("attn_v"), key, hidden, v)
        if bias:
            for part, width in (("q", query), ("k", key), ("v", key)):
                self.vector(f"blk.{n}.attn_{part}.bias", width, around=0.0)
        self.matrix(at("attn_output"), hidden, query, o)
        self.vector(at("ffn_norm"), hidden)
        self.matrix(at("ffn_gate"), inner, hidden, gate)
        self.matrix(at("ffn_up"), inner, hidden, up)
        self.matrix(at("ffn_down"), hidden, inner, down)
        self.layers += 1

    def metadata(self):
        out = self.out
        out.add_block_count(self.layers)
        out.add_context_length(512)
        out.add_embedding_length(self.hidden)
        out.add_feed_forward_length(self.inner)
        out.add_head_count(self.heads)
        out.add_head_count_kv(self.kv_heads)
        out.add_key_length(self.dim)
        out.add_value_length(self.dim)
        out.add_layer_norm_rms_eps(self.eps)
        out.add_rope_freq_base(self.theta)
        out.add_rope_dimension_count(self.dim)
        out.add_vocab_size(self.vocab)

    def norm(self, x, gain):
        return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + self.eps) * gain

    def turn(self, x, positions):
        """Rotary embedding: of neighbours in Llama's order, of halves in Qwen's."""
        half = self.dim // 2
        exponents = np.arange(half) * 2 / self.dim
        frequencies = self.theta ** -exponents
        if "rope_freqs.weight" in self.weights:
            frequencies = frequencies / self.weights["rope_freqs.weight"]
        angles = positions[:, None, None] * frequencies
        cos, sin = np.cos(angles), np.sin(angles)
        out = np.empty_like(x)
        if self.arch == "llama":
            a, b = x[..., 0::2], x[..., 1::2]
            out[..., 0::2], out[..., 1::2] = a * cos - b * sin, b * cos + a * sin
        else:
            a, b = x[..., :half], x[..., half:]
            out[..., :half], out[..., half:] = a * cos - b * sin, b * cos + a * sin
        return out

    def logits(self, ids):
        w, rows = self.weights, len(ids)
        x = w["token_embd.weight"][ids]
        positions = np.arange(rows, dtype=np.float64)
        mask = np.triu(np.full((rows, rows), -np.inf), 1)
        for n in range(self.layers):
            part = lambda name: w[f"blk.{n}.{name}.weight"]
            bias = lambda name: w.get(f"blk.{n}.attn_{name}.bias", 0.0)
            y = self.norm(x, part("attn_norm"))
            q = (y @ part("attn_q").T + bias("q")).reshape(rows, self.heads, self.dim)
            k = (y @ part("attn_k").T + bias("k")).reshape(rows, self.kv_heads, self.dim)
            v = (y @ part("attn_v").T + bias("v")).reshape(rows, self.kv_heads, self.dim)
            q, k = self.turn(q, positions), self.turn(k, positions)
            group = self.heads // self.kv_heads
            k, v = k.repeat(group, 1), v.repeat(group, 1)
            scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(self.dim) + mask
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            scores /= scores.sum(-1, keepdims=True)
            attended = np.einsum("hqk,khd->qhd", scores, v).reshape(rows, -1)
            x = x + attended @ part("attn_output").T
            y = self.norm(x, part("ffn_norm"))
            gate, up = y @ part("ffn_gate").T, y @ part("ffn_up").T
            x = x + (gate / (1 + np.exp(-gate)) * up) @ part("ffn_down").T
        x = self.norm(x, w["output_norm.weight"])
        head = w.get("output.weight", w["token_embd.weight"])
        return x @ head.T

    def expectation(self, steps=24):
        ids = [int(n) for n in RNG.integers(3, self.vocab, 12)]
        logits = self.logits(ids)
        text = list(ids)
        for _ in range(steps):
            text.append(int(self.logits(text)[-1].argmax()))
        return {
            "ids": ids,
            "logits": [[float(f"{x:.6g}") for x in row] for row in logits[[0, 5, 11]]],
            "rows": [0, 5, 11],
            "greedy": text[len(ids):],
        }


TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def mixed_file():
    """Every format, K and V of one panel in two formats, a head of its own, rope factors, a byte-level tokenizer."""
    out = GGUFWriter(os.path.join(HERE, "llama.gguf"), "llama")
    vocab = add_byte_level(out, "smollm")
    out.add_chat_template(TEMPLATE)
    model = Model(out, "llama", heads=4, kv_heads=1, dim=16, hidden=256, inner=64, vocab=vocab)
    model.matrix("token_embd.weight", vocab, 256, T.Q4_K)
    values = np.linspace(1, 4, 8).astype(np.float32)
    out.add_tensor("rope_freqs.weight", values)
    model.weights["rope_freqs.weight"] = values.astype(np.float64)
    model.layer(T.Q4_K, T.Q8_0, T.Q8_0, T.Q5_0, T.Q4_0, T.Q4_0, T.Q4_1)
    model.layer(T.Q6_K, T.Q4_K, T.Q6_K, T.Q4_0, T.Q5_K, T.Q5_K, T.Q8_0)
    model.vector("output_norm.weight", 256)
    model.matrix("output.weight", vocab, 256, T.Q6_K)
    model.metadata()
    write(out)
    return model.expectation()


def tied_file():
    """Whole numbers of the other types, the embedding as the head, a SentencePiece tokenizer."""
    out = GGUFWriter(os.path.join(HERE, "tied.gguf"), "llama")
    tokens, types, scores = sentence_pieces()
    out.add_tokenizer_model("llama")
    out.add_token_list(tokens)
    out.add_token_types(types)
    out.add_token_scores(scores)
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    model = Model(out, "llama", heads=2, kv_heads=2, dim=16, hidden=32, inner=64, vocab=len(tokens))
    model.matrix("token_embd.weight", len(tokens), 32, T.Q8_0)
    model.layer(T.F16, T.BF16, T.F32, T.F16, T.Q4_1, T.Q5_0, T.BF16)
    model.vector("output_norm.weight", 32)
    model.metadata()
    write(out)
    return model.expectation()


def qwen_file():
    """Biases, and queries and keys in the order of halves."""
    out = GGUFWriter(os.path.join(HERE, "qwen2.gguf"), "qwen2")
    vocab = add_byte_level(out, "qwen2")
    model = Model(out, "qwen2", heads=2, kv_heads=1, dim=16, hidden=32, inner=64, vocab=vocab)
    model.matrix("token_embd.weight", vocab, 32, T.Q8_0)
    model.layer(T.Q5_0, T.Q8_0, T.Q4_0, T.Q5_0, T.Q4_0, T.Q4_0, T.Q4_1, bias=True)
    model.vector("output_norm.weight", 32)
    model.metadata()
    write(out)
    return model.expectation()


def heads_file():
    """Heads as wide as GPUs have kernels for, in the order of neighbours, with rope factors and a head of its own."""
    out = GGUFWriter(os.path.join(HERE, "heads.gguf"), "llama")
    vocab = add_byte_level(out, "smollm")
    model = Model(out, "llama", heads=3, kv_heads=1, dim=64, hidden=256, inner=64, vocab=vocab)
    model.matrix("token_embd.weight", vocab, 256, T.Q8_0)
    values = np.linspace(1, 4, 32).astype(np.float32)
    out.add_tensor("rope_freqs.weight", values)
    model.layer(T.Q4_K, T.Q6_K, T.Q8_0, T.Q8_0, T.Q4_0, T.Q5_K, T.F16)
    model.vector("output_norm.weight", 256)
    model.matrix("output.weight", vocab, 256, T.Q6_K)
    model.metadata()
    write(out)


def seeds():
    """Small models for tests/fuzz to begin with."""
    folder = os.path.join(HERE, "..", "fuzz", "corpus", "gguf")
    os.makedirs(folder, exist_ok=True)
    for arch, kinds in (("llama", [T.Q8_0, T.Q4_0, T.Q5_0]), ("llama", [T.F16, T.Q4_1, T.BF16]), ("qwen2", [T.Q4_0] * 3)):
        name = arch + "-" + "-".join(kind.name.lower() for kind in kinds)
        out = GGUFWriter(os.path.join(folder, name), arch)
        if arch == "llama" and kinds[0] == T.F16:
            tokens = ["<unk>", "<s>", "</s>", "<0x0A>", "▁", "a", "b", "▁a", "ab", "▁ab"]
            out.add_tokenizer_model("llama")
            out.add_token_types([2, 3, 3, 6] + [1] * 6)
            out.add_token_scores([0.0] * 4 + [-float(n) for n in range(6)])
        else:
            tokens = ["<s>", "</s>", "a", "b", "ab", "Ġ", "Ġa", "1", "2", "12"]
            out.add_tokenizer_model("gpt2")
            out.add_tokenizer_pre("smollm" if arch == "llama" else "qwen2")
            out.add_token_types([3, 3, 4] + [1] * 7)
            out.add_token_merges(["a b", "Ġ a", "1 2"])
        out.add_token_list(tokens)
        out.add_bos_token_id(1)
        out.add_eos_token_id(1)
        model = Model(out, arch, heads=2, kv_heads=1, dim=16, hidden=32, inner=32, vocab=len(tokens))
        model.matrix("token_embd.weight", len(tokens), 32, kinds[0])
        q, k, v = kinds
        model.layer(q, k, v, q, k, v, q, bias=arch == "qwen2")
        model.vector("output_norm.weight", 32)
        model.metadata()
        write(out)
    out = GGUFWriter(os.path.join(folder, "k-quants"), "llama")
    for kind in (T.Q4_K, T.Q5_K, T.Q6_K):
        out.add_tensor(kind.name, random_blocks(kind, 1, 256), raw_dtype=kind)
    write(out)


def main():
    seeds()
    blocks_file()
    expected = {"llama": mixed_file(), "tied": tied_file(), "qwen2": qwen_file()}
    heads_file()
    lines = {}
    for pre in ("gpt-2", "smollm", "llama-bpe", "qwen2"):
        tokenizer, _ = byte_level(pre)
        lines[pre] = [tokenizer.encode(line, add_special_tokens=False).ids for line in LINES]
    # The template of Llama 2 puts <s> in front.
    lines["sentence-pieces"] = [[1] + sentence_piece_tokenizer().encode(line).ids for line in LINES]
    expected["lines"], expected["tokens"] = LINES, lines
    with open(os.path.join(HERE, "expected.json"), "w", encoding="utf-8") as file:
        json.dump(expected, file, ensure_ascii=False)
        file.write("\n")


if __name__ == "__main__":
    main()
