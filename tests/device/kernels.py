"""The kernels as the card sees them: parameters, and which shape serves how many rows.

The structures are those of engine/src/cuda/kernels, field by field.
"""

import ctypes
import re
from ctypes import c_double, c_float, c_int, c_uint, c_uint64
from pathlib import Path

from driver import most_shared_bytes

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


class Shape:
    """A kernel of the matmul: rows and outputs of a block, and whether its warps share."""

    def __init__(self, rows, outputs, shares):
        self.rows, self.outputs, self.shares = rows, outputs, shares


# As matmul.cu has them.
SHAPES = {
    f"{rows}_by_{outputs}": Shape(rows, outputs, shares)
    for rows, outputs, shares in (
        (8, 16, False), (8, 32, False), (16, 16, False), (16, 32, False), (32, 32, False), (64, 32, False),
        (64, 64, True), (64, 128, True), (128, 128, True),
    )
}

class Kernels:
    """All kernels, loaded."""

    def __init__(self, gpu, folder, bench_folder):
        self.gpu = gpu

        def text(where, name, arch):
            return (Path(where) / f"{name}.{arch}.ptx").read_text()

        # As engine/src/cuda/kernels.rs chooses.
        major = gpu.compute[0]
        self.arch = "sm_80" if major < 9 else "sm_90a" if major == 9 else "sm_100"
        names = ("matmul", "rows", "attention", "asks")
        if max(most_shared_bytes(text(folder, name, self.arch)) for name in names) > gpu.block_bytes:
            self.arch = "sm_80"
        matmul, rows, attention, asks = (gpu.module(text(folder, name, self.arch)) for name in names)
        bench = gpu.module(text(bench_folder, "bench", self.arch))
        self.shapes = {name: matmul.kernel(f"matmul_{name}") for name in SHAPES}
        self.norm, self.embed = rows.kernel("rms_norm"), rows.kernel("embed")
        shapes = re.findall(r"\.entry attend_(\d+)_by_(\d+)\(", attention.text)
        self.attends = {(int(group), int(dim)): attention.kernel(f"attend_{group}_by_{dim}") for group, dim in shapes}
        self.join = attention.kernel("join_pieces")
        self.survey, self.filter, self.race = asks.kernel("survey"), asks.kernel("filter"), asks.kernel("race")
        self.answer, self.score = asks.kernel("answer"), asks.kernel("score_tokens")
        self.fill, self.fill_float, self.read_all = (bench.kernel(name) for name in ("fill", "fill_float", "read_all"))

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
