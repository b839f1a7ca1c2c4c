"""The forward pass once more in f32, through PyTorch where it is installed: how far the kernels are from it."""


def unpacked(torch, gpu, weight):
    """A packed weight as a matrix, f32 `[outputs][inputs]`, in the order in which it was packed."""
    raw = torch.frombuffer(bytearray(gpu.read(weight.at, weight.bytes)), dtype=torch.bfloat16)
    tiles = raw.view(weight.tiles, weight.chunks, 2, 8, 4, 2, 2, 2)
    plain = tiles.permute(0, 6, 3, 1, 4, 2, 5, 7).reshape(weight.tiles * 16, weight.chunks * 32)
    return plain[:weight.outputs, :weight.inputs].float().cuda()


def halves(matrix):
    """Tiles of 8 and 8 outputs taken apart: all of the first eights, all of the second."""
    tiles = matrix.view(-1, 2, 8, matrix.shape[1])
    return tiles[:, 0].reshape(-1, matrix.shape[1]), tiles[:, 1].reshape(-1, matrix.shape[1])


def reference_logits(torch, gpu, model, tokens):
    """Logits `[position][vocab]` of a text, in f32."""
    s = model.shape
    head = unpacked(torch, gpu, model.head)
    if s.tied:
        table = head
    else:
        raw = gpu.read(model.table, s.vocab * s.hidden * 2)
        table = torch.frombuffer(bytearray(raw), dtype=torch.bfloat16).view(s.vocab, s.hidden).float().cuda()
    turns = torch.frombuffer(bytearray(gpu.read(model.turns, len(tokens) * s.dim * 4)), dtype=torch.float32)
    turns = turns.view(len(tokens), 2, 1, s.dim // 2).cuda()
    norm = lambda x: x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-5)
    x = table[torch.tensor(tokens).cuda()]
    count, heads = len(tokens), s.heads + 2 * s.kv_heads
    mask = torch.full((count, count), float("-inf"), device="cuda").triu(1)
    for w in model.layers:
        qkv = unpacked(torch, gpu, w["qkv"]).view(heads, s.dim // 16, 2, 8, s.hidden)
        low, high = (norm(x) @ qkv[:, :, i].reshape(-1, s.hidden).T for i in (0, 1))
        low, high = low.view(count, heads, -1), high.view(count, heads, -1)
        cos, sin = turns[:, 0], turns[:, 1]
        turned = torch.cat([low * cos - high * sin, high * cos + low * sin], -1)
        plain = torch.cat([low, high], -1)
        q, k = turned[:, :s.heads], turned[:, s.heads:s.heads + s.kv_heads]
        v = plain[:, s.heads + s.kv_heads:]
        group = s.heads // s.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scores = torch.einsum("qhd,khd->hqk", q, k) / s.dim**0.5 + mask
        mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).reshape(count, -1)
        x = x + mixed @ unpacked(torch, gpu, w["o"]).T
        gate, up = halves(unpacked(torch, gpu, w["gate_up"]))
        inner = torch.nn.functional.silu(norm(x) @ gate.T) * (norm(x) @ up.T)
        x = x + inner @ unpacked(torch, gpu, w["down"]).T
    return norm(x) @ head.T


def distance(gpu, model, tokens, logits):
    """The relative distance of logits (bytes by position) from the reference; None without PyTorch."""
    try:
        import torch
    except ImportError:
        return None
    with torch.no_grad():
        torch.backends.cuda.matmul.allow_tf32 = False
        want = reference_logits(torch, gpu, model, tokens)
        got = torch.frombuffer(bytearray(b"".join(logits)), dtype=torch.float32).view(want.shape).cuda()
        result = float((got - want).norm() / want.norm())
        del want, got
        torch.cuda.empty_cache()
    return result
