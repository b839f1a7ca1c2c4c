"""The kernels as the card sees them: parameters, threads, shared memory, and which shape serves how many rows.

The structures are those of engine/src/cuda/kernels, field by field.
"""

import ctypes
from ctypes import c_double, c_float, c_int, c_uint, c_uint64
from pathlib import Path

P = c_uint64
U = c_uint


def structure(name, **fields):
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


Matmul = structure(
    "Matmul", weights=P, x=P, y=P, turns=P, positions=P, slots=P, keys=P, values=P, partials=P, arrived=P,
    chunks=U, outputs=U, stride_x=U, stride_y=U, then=U, heads=U, kv_heads=U, head_dim=U,
)
Norm = structure("Norm", x=P, gain=P, y=P, which=P, width=U, stride_y=U, eps=c_float)
Embed = structure("Embed", table=P, tokens=P, x=P, width=U, chunks=U)
Attend = structure(
    "Attend", queries=P, keys=P, values=P, y=P, committed=P, first_page=P, pages=P, first_path=P, path_length=P,
    paths=P, room=P, kv_heads=U, stride_y=U, most_pieces=U, scale=c_float, rows=U, together=U, takes=U, group=U, head_dim=U, unused=U,
)
Task = structure(
    "Task", kind=U, row=U, guesses=U, top=U, token=U, of=c_int, temperature=c_float, top_k=U, top_p=c_float,
    min_p=c_float, choice=U, position=U, seed=c_uint64, first_bias=U, biases=U, first_seen=U, seens=U, first_mask=U,
    masks=U, repetition=c_float, presence=c_float, frequency=c_float, unused=U,
)
Guess = structure("Guess", token=U, q=c_float, margin=c_float, weight=c_float)
Answer = structure(
    "Answer", state=U, count=U, logprob=c_float, rank=U, tops=U, top_ids=U * 20, top_logprobs=c_float * 20,
    guesses=Guess * 64,
)
Found = structure(
    "Found", strongest=P, weakest=P, bar=c_double, candidates=U, is_sound=U, strongest_logit=c_float, unused=U,
)
Asks = structure(
    "Asks", logits=P, tasks=P, answers=P, found=P, shaped=P, maxima=P, sound=P, candidates=P, biases=P, seen=P,
    masks=P, vocab=U, stride=U, room=U, unused=U,
)
Fill = structure("Fill", to=P, count=c_uint64, seed=c_uint64, scale=c_float, unused=U)
FillFloat = structure("FillFloat", to=P, count=c_uint64, value=c_float, unused=U)
Read = structure("Read", source=P, count=c_uint64, sink=P)

STORE, ADD, GATE, TURN = range(4)
NOTHING, PICK, GUESSES, SCORE = range(4)
SHARES = 32
MAXIMA = 512
CANDIDATES = 4096


def _stream(mt, nt, stages):
    return 128, 4 * stages * (mt * 1024 + nt * 512)


def _share(mt, nt, wm, wn, stages):
    return 32 * wm * wn, stages * 2 * (wm * mt * 1024 + wn * nt * 8 * 64)


class Shape:
    """A kernel of the matmul: rows and outputs of a block, its threads and shared memory, and whether its warps share."""

    def __init__(self, name, rows, outputs, needs, shares):
        self.name, self.rows, self.outputs, self.needs, self.shares = name, rows, outputs, needs, shares


# As the templates of matmul.cu have them.
SHAPES = {
    shape.name: shape
    for shape in (
        Shape("8_by_16", 8, 16, _stream(1, 1, 16), False),
        Shape("8_by_32", 8, 32, _stream(2, 1, 10), False),
        Shape("16_by_16", 16, 16, _stream(1, 2, 13), False),
        Shape("16_by_32", 16, 32, _stream(2, 2, 9), False),
        Shape("32_by_32", 32, 32, _stream(2, 4, 7), False),
        Shape("64_by_32", 64, 32, _stream(2, 8, 4), False),
        Shape("64_by_64", 64, 64, _share(1, 8, 4, 1, 6), True),
        Shape("64_by_128", 64, 128, _share(2, 8, 4, 1, 4), True),
        Shape("128_by_128", 128, 128, _share(2, 8, 4, 2, 4), True),
    )
}
ATTEND = [(1, 48), (1, 64), (3, 64), (4, 64), (8, 64), (1, 128), (3, 128), (4, 128), (8, 128)]
_ROOM_BYTES = 4096 * 8 + 512 * 8 + 2 * 2048 * 8 + 16 * 8 + 256 * 4 + 8 + 8 + 32 * 8 + 4 * 4


class Kernels:
    """All kernels, loaded."""

    def __init__(self, gpu, folder, bench_folder):
        self.gpu = gpu
        self.arch = {8: "sm_80", 9: "sm_90a", 10: "sm_100"}.get(gpu.compute[0], "sm_80")

        def module(where, name):
            path = Path(where) / f"{name}.{self.arch}.ptx"
            return gpu.module(path.read_bytes() + b"\0")

        matmul, rows, attention, asks = (module(folder, n) for n in ("matmul", "rows", "attention", "asks"))
        bench = module(bench_folder, "bench")
        self.shapes = {name: gpu.kernel(matmul, f"matmul_{name}", *shape.needs) for name, shape in SHAPES.items()}
        self.norm = gpu.kernel(rows, "rms_norm", 256, 32)
        self.embed = gpu.kernel(rows, "embed", 256)
        self.attends = {}
        for group, dim in ATTEND:
            units = (dim // 8 + 7) // 8 * 8
            shared = 128 * 4 + 8 * 132 * 4 + 8 * 136 * 2 + 16 * 4 + 8 * 16 + 128 * units * 16
            self.attends[group, dim] = gpu.kernel(attention, f"attend_{group}_by_{dim}", 128, shared)
        self.join = gpu.kernel(attention, "join_pieces", 256)
        self.survey = gpu.kernel(asks, "survey", 256, 2112)
        self.filter = gpu.kernel(asks, "filter", 1024, _ROOM_BYTES)
        self.race = gpu.kernel(asks, "race", 256)
        self.answer = gpu.kernel(asks, "answer", 1024, _ROOM_BYTES)
        self.score = gpu.kernel(asks, "score_tokens", 1024, _ROOM_BYTES)
        self.fill = gpu.kernel(bench, "fill", 256)
        self.fill_float = gpu.kernel(bench, "fill_float", 256)
        self.read_all = gpu.kernel(bench, "read_all", 256)

    def multiply(self, matmul, tiles, rows, name=None, parts=1):
        """Runs a multiplication over `rows` rows, with the shape and the number of blocks for the parts that serve it."""
        outputs = tiles * 16
        if name is None:
            name, parts = self.shape_for(outputs, matmul.chunks, rows)
        shape = SHAPES[name]
        across = -(-rows // shape.rows)
        if shape.shares:
            self.shapes[name]((across, outputs // shape.outputs, parts), matmul)
        else:
            assert across == 1
            self.shapes[name]((outputs // shape.outputs,), matmul)

    def shape_for(self, outputs, chunks, rows):
        """What was fastest on an H100: blocks enough for all of the card, and few rows for the outputs that share them."""
        if rows <= 16:
            narrow = 2048 < outputs <= 4096 and chunks > 64
            return f"{8 if rows <= 8 else 16}_by_{16 if narrow else 32}", 1
        if rows <= 32:
            return "32_by_32", 1
        if rows <= 64:
            if outputs >= 20000:
                return "64_by_128", 1
            return ("64_by_64", 4) if chunks >= 256 and outputs > 2048 else ("64_by_32", 1)
        return "128_by_128", 1 if -(-rows // 128) * (outputs // 128) >= 112 else 4
