"""A Llama of random weights on the card, and its step: the launches that a backend would make."""

import math
import struct
from array import array
from ctypes import sizeof

from kernels import (
    ADD, CANDIDATES, GATE, MAXIMA, SHARES, STORE, TURN, Answer, Asks, Attend, Embed, Fill, FillFloat, Found, Matmul,
    Norm, Task,
)

ROWS = 128
PAGE = 16
PIECE = 128


class Shape:
    """The sizes of a Llama."""

    def __init__(self, name, hidden, inner, layers, heads, kv_heads, dim, vocab=128256, tied=True):
        self.name, self.hidden, self.inner, self.layers = name, hidden, inner, layers
        self.heads, self.kv_heads, self.dim, self.vocab, self.tied = heads, kv_heads, dim, vocab, tied

    def but(self, **changes):
        """The same with other sizes."""
        other = Shape.__new__(Shape)
        other.__dict__.update(self.__dict__, **changes)
        return other

    def matrices(self):
        """Name, outputs and inputs of the matrices of a layer."""
        width = self.heads * self.dim
        return [
            ("qkv", width + 2 * self.kv_heads * self.dim, self.hidden),
            ("o", self.hidden, width),
            ("gate_up", 2 * self.inner, self.hidden),
            ("down", self.hidden, self.inner),
        ]


SHAPES = [
    Shape("8B", 4096, 14336, 32, 32, 8, 128, tied=False),
    Shape("3B", 3072, 8192, 28, 24, 8, 128),
    Shape("1B", 2048, 8192, 16, 32, 8, 64),
]


def up_to(count, whole):
    return -(-count // whole) * whole


class Weight:
    """A packed weight of random numbers."""

    def __init__(self, gpu, kernels, outputs, inputs, seed):
        self.outputs, self.inputs = outputs, inputs
        self.chunks, self.tiles = up_to(inputs, 128) // 32, up_to(outputs, 128) // 16
        self.bytes = self.tiles * self.chunks * 1024
        self.at = gpu.room(self.bytes)
        # Padded inputs have weights too, and meet zeros.
        kernels.fill((1056,), Fill(to=self.at, count=self.bytes // 2, seed=seed, scale=1 / math.sqrt(inputs)))


class Row:
    """One row of a step: its token, where it stands, where its key and value go, and what it sees."""

    def __init__(self, token, position, slot, committed, first_page, path=()):
        self.token, self.position, self.slot = token, position, slot
        self.committed, self.first_page, self.path = committed, first_page, tuple(path)


class Model:
    """Weights, cache and activations. `pages` pages of the cache, and a text of at most `context` positions."""

    def __init__(self, gpu, kernels, shape, pages, context, seed=1):
        self.gpu, self.kernels, self.shape, self.pages = gpu, kernels, shape, pages
        self.attend = kernels.attends[shape.heads // shape.kv_heads, shape.dim]
        self.layers = []
        for layer in range(shape.layers):
            weights = {
                name: Weight(gpu, kernels, outputs, inputs, seed * 1000003 + layer * 7919 + len(name) + outputs)
                for name, outputs, inputs in shape.matrices()
            }
            self.layers.append(weights)
        self.head = Weight(gpu, kernels, shape.vocab, shape.hidden, seed + 77)
        self.table = None
        if not shape.tied:
            self.table = gpu.room(shape.vocab * shape.hidden * 2)
            kernels.fill((1056,), Fill(to=self.table, count=shape.vocab * shape.hidden, seed=seed + 78, scale=1.0))
        self.gain = gpu.room(shape.hidden * 4)
        kernels.fill_float((8,), FillFloat(to=self.gain, count=shape.hidden, value=1.0))
        one = self.layers[0]
        self.strides = {name: one[name].chunks * 32 for name in one}
        self.hidden = gpu.room(ROWS * shape.hidden * 4)
        self.normed = gpu.room(ROWS * self.strides["qkv"] * 2)
        self.queries = gpu.room(ROWS * shape.heads * shape.dim * 2)
        self.attended = gpu.room(ROWS * self.strides["o"] * 2)
        self.inner = gpu.room(ROWS * self.strides["down"] * 2)
        self.logits = gpu.room(ROWS * shape.vocab * 4)
        self.turns = gpu.room(context * shape.dim * 4)
        gpu.write(self.turns, self._turns(context))
        self.cache_elements = pages * PAGE * shape.kv_heads * shape.dim
        self.keys = gpu.room(self.cache_elements * shape.layers * 2)
        self.values = gpu.room(self.cache_elements * shape.layers * 2)
        self.most_pieces = -(-context // PIECE)
        group = shape.heads // shape.kv_heads
        self.room = gpu.room(ROWS * shape.kv_heads * self.most_pieces * (group * shape.dim + 16) * 4)
        self.partials = gpu.room(4 * 16384 * ROWS * 4)
        self.arrived = gpu.room(1 << 16)
        self.meta = gpu.room(8 * ROWS * 4)
        self.page_list = gpu.room(1 << 16)
        self.path_list = gpu.room(1 << 16)
        self._asks()

    def _turns(self, context):
        half = self.shape.dim // 2
        frequencies = [500000.0 ** (-2 * i / self.shape.dim) for i in range(half)]
        turns = array("f")
        for position in range(context):
            turns.extend(math.cos(position * f) for f in frequencies)
            turns.extend(math.sin(position * f) for f in frequencies)
        return turns

    def _asks(self):
        gpu, vocab, most = self.gpu, self.shape.vocab, 64
        self.tasks = gpu.room(most * sizeof(Task))
        self.answers = gpu.room(most * sizeof(Answer))
        self.asks = Asks(
            logits=self.logits, tasks=self.tasks, answers=self.answers, found=gpu.room(most * sizeof(Found)),
            shaped=gpu.room(most * up_to(vocab, 16) * 4), maxima=gpu.room(most * MAXIMA * 8),
            sound=gpu.room(most * SHARES * 4), candidates=gpu.room(most * CANDIDATES * 16), biases=gpu.room(1 << 16),
            seen=gpu.room(1 << 16), masks=gpu.room(1 << 12), vocab=vocab, stride=vocab, room=CANDIDATES,
        )

    def weight_bytes(self):
        """Bytes of weights that a step reads."""
        return self.head.bytes + sum(w.bytes for layer in self.layers for w in layer.values())

    # A step

    def set_pages(self, pages):
        self.gpu.write(self.page_list, array("i", pages))

    def set_rows(self, rows, bucket=None):
        """Writes what a step computes; the rest of the bucket is padding, which sees nothing and is stored nowhere."""
        bucket = bucket or len(rows)
        paths, columns = array("i"), [[] for _ in range(8)]
        for i, row in enumerate(rows):
            values = (
                row.token, row.position, row.slot, row.committed, row.first_page, len(paths), len(row.path), i,
            )
            for column, value in zip(columns, values):
                column.append(value)
            paths.extend(row.path)
        padding = (0, 0, -1, 0, 0, 0, 0, 0)
        data = array("i")
        for column, value in zip(columns, padding):
            data.extend(column + [value] * (ROWS - len(column)))
        self.gpu.write(self.meta, data)
        if paths:
            self.gpu.write(self.path_list, paths)
        return bucket

    def _column(self, which):
        return self.meta + which * ROWS * 4

    def set_tasks(self, tasks):
        data = b"".join(bytes(task) for task in tasks)
        self.gpu.write(self.tasks, data)

    def multiply(self, weight, x, y, rows, then, layer=0, shape=None, parts=1):
        s = self.shape
        cache = layer * self.cache_elements * 2
        outputs = {STORE: weight.outputs, ADD: weight.outputs, GATE: weight.outputs // 2, TURN: weight.outputs}[then]
        stride_y = {STORE: outputs, ADD: outputs, GATE: self.strides["down"], TURN: s.heads * s.dim}[then]
        matmul = Matmul(
            weights=weight.at, x=x, y=y, turns=self.turns, positions=self._column(1), slots=self._column(2),
            keys=self.keys + cache, values=self.values + cache, partials=self.partials, arrived=self.arrived,
            chunks=weight.chunks, outputs=outputs, stride_x=weight.chunks * 32, stride_y=stride_y, then=then,
            heads=s.heads, kv_heads=s.kv_heads, head_dim=s.dim,
        )
        self.kernels.multiply(matmul, weight.tiles, rows, shape, parts)

    def norm(self, rows, which=0):
        s = self.shape
        self.kernels.norm((rows,), Norm(
            x=self.hidden, gain=self.gain, y=self.normed, which=which, width=s.hidden, stride_y=self.strides["qkv"], eps=1e-5,
        ))

    def embed(self, rows):
        s = self.shape
        table, chunks = (self.head.at, self.head.chunks) if s.tied else (self.table, 0)
        self.kernels.embed((rows,), Embed(table=table, tokens=self._column(0), x=self.hidden, width=s.hidden, chunks=chunks))

    def attention(self, rows, layer, blocks=None, together=None):
        s = self.shape
        cache = layer * self.cache_elements * 2
        # Rows that share a text load it once; blocks enough that all of the card has some.
        group = s.heads // s.kv_heads
        together = together or min(rows, 2 if rows <= 16 else 8 if rows > 32 and s.dim >= 128 else 4)
        teams = -(-rows // together)
        blocks = blocks or max(1, min(self.most_pieces, 1056 // (teams * s.kv_heads)))
        attend = Attend(
            queries=self.queries, keys=self.keys + cache, values=self.values + cache, y=self.attended,
            committed=self._column(3), first_page=self._column(4), pages=self.page_list, first_path=self._column(5),
            path_length=self._column(6), paths=self.path_list, room=self.room, kv_heads=s.kv_heads,
            stride_y=self.strides["o"], most_pieces=self.most_pieces, scale=1 / math.sqrt(s.dim), rows=rows,
            together=together, takes=blocks, group=group, head_dim=s.dim,
        )
        self.attend((s.kv_heads, teams, blocks + together), attend)
        self.kernels.join((s.kv_heads, rows), attend)

    def layer(self, rows, i):
        w = self.layers[i]
        self.norm(rows)
        self.multiply(w["qkv"], self.normed, self.queries, rows, TURN, i)
        self.attention(rows, i)
        self.multiply(w["o"], self.attended, self.hidden, rows, ADD)
        self.norm(rows)
        self.multiply(w["gate_up"], self.normed, self.inner, rows, GATE)
        self.multiply(w["down"], self.inner, self.hidden, rows, ADD)

    def forward(self, rows):
        """The logits of all rows."""
        self.embed(rows)
        for i in range(self.shape.layers):
            self.layer(rows, i)
        self.norm(rows, self._column(7))
        self.multiply(self.head, self.normed, self.logits, rows, STORE)

    def answer(self, tasks, scores=False):
        k, asks = self.kernels, self.asks
        k.survey((SHARES, tasks), asks)
        k.filter((tasks,), asks)
        k.race((SHARES, tasks), asks)
        k.answer((tasks,), asks)
        if scores:
            k.score((tasks,), asks)

    # What tests look at

    def read_logits(self, rows):
        """The logits of each row, as bytes."""
        width = self.shape.vocab * 4
        data = self.gpu.read(self.logits, rows * width)
        return [data[i * width:(i + 1) * width] for i in range(rows)]

    def read_position(self, slot):
        """The bytes of a slot's keys and values, all layers and heads."""
        s, parts = self.shape, []
        for cache in (self.keys, self.values):
            for layer in range(s.layers):
                for head in range(s.kv_heads):
                    at = ((slot // PAGE * s.kv_heads + head) * PAGE + slot % PAGE) * s.dim
                    parts.append(self.gpu.read(cache + (layer * self.cache_elements + at) * 2, s.dim * 2))
        return b"".join(parts)

    def read_answers(self, count):
        data = self.gpu.read(self.answers, count * sizeof(Answer))
        return [Answer.from_buffer_copy(data, i * sizeof(Answer)) for i in range(count)]


def floats(data):
    return struct.unpack(f"{len(data) // 4}f", data)


def differing_bits(a, b):
    if len(a) != len(b):
        return 8 * max(len(a), len(b))
    return 0 if a == b else (int.from_bytes(a, "little") ^ int.from_bytes(b, "little")).bit_count()
