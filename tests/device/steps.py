"""How long a step takes, against one read of the weights and against cuBLAS."""

from kernels import ADD, GATE, GUESSES, PICK, STORE, TURN, Read, Task
from model import PAGE, Model, Row

ROWS = (1, 8, 16, 32, 64)
COMMITTED = 512


def bandwidth(gpu, kernels):
    """Bytes a second that a kernel reads which does nothing else: the best of some launches of 8 GB."""
    size = 8 << 30
    data, sink = gpu.room(size, 1), gpu.room(16)
    best = 0.0
    for blocks in (2, 4, 8, 16):
        read = Read(source=data, count=size // 16, sink=sink)
        span = gpu.seconds(lambda: kernels.read_all((gpu.processors * blocks,), read), 5)
        best = max(best, size / span)
    gpu.free(data)
    return best


def tree_rows(count):
    """Rows of one session: a text of 512 positions, and a tree of depth 8 at most behind it."""
    slots = [60 * PAGE + i for i in range(count)]
    rows = []
    for i in range(count):
        depth = i % 8
        path = slots[i - depth:i + 1]
        rows.append(Row(100 + i, COMMITTED + depth, slots[i], COMMITTED, 0, path))
    return rows


def tasks_for(count, kind):
    return [
        Task(kind=kind, row=i, guesses=4, of=-1, temperature=1.0, top_p=1.0, seed=5, position=COMMITTED + i % 8, repetition=1.0)
        for i in range(count)
    ]


class Steps:
    """One shape of model, ready to be timed."""

    def __init__(self, gpu, kernels, shape):
        self.gpu, self.kernels, self.shape = gpu, kernels, shape
        self.mark = list(gpu.held)
        self.model = Model(gpu, kernels, shape, pages=80, context=1024)
        self.model.set_pages(range(60))
        # Something finite to look at: the text once, in pieces.
        for first in range(0, COMMITTED, 64):
            rows = [Row(i, i, i, i + 1, 0) for i in range(first, first + 64)]
            self.model.set_rows(rows)
            self.model.forward(64)
        gpu.wait()

    def close(self):
        for address in [a for a in self.gpu.held if a not in self.mark]:
            self.gpu.free(address)

    def timed(self, record, times=20):
        record()
        graph = self.gpu.graph(record)
        for _ in range(3):
            self.gpu.replay(graph)
        return self.gpu.seconds(lambda: self.gpu.replay(graph), times)

    def matmuls(self, rows):
        m = self.model
        for i, w in enumerate(m.layers):
            m.multiply(w["qkv"], m.normed, m.queries, rows, TURN, i)
            m.multiply(w["o"], m.attended, m.hidden, rows, ADD)
            m.multiply(w["gate_up"], m.normed, m.inner, rows, GATE)
            m.multiply(w["down"], m.inner, m.hidden, rows, ADD)
        m.multiply(m.head, m.normed, m.logits, rows, STORE)

    def run(self, rows):
        """Seconds of a step with picks, one with guesses, the forward pass alone, and its matmuls alone."""
        m = self.model
        m.set_rows(tree_rows(rows))
        result = {"forward": self.timed(lambda: m.forward(rows))}
        for name, kind in (("pick", PICK), ("guesses", GUESSES)):
            m.set_tasks(tasks_for(rows, kind))
            result[name] = self.timed(lambda: (m.forward(rows), m.answer(rows)))
        result["matmuls"] = self.timed(lambda: self.matmuls(rows))
        return result

    def parts(self, rows):
        """Seconds of each kind of kernel in a step, all layers of it one after another."""
        m, layers = self.model, list(enumerate(self.model.layers))
        m.set_rows(tree_rows(rows))
        m.set_tasks(tasks_for(rows, PICK))
        kinds = {
            "norm": lambda: [m.norm(rows) for _ in layers for _ in range(2)],
            "attention": lambda: [m.attention(rows, i) for i, _ in layers],
            "qkv": lambda: [m.multiply(w["qkv"], m.normed, m.queries, rows, TURN, i) for i, w in layers],
            "o": lambda: [m.multiply(w["o"], m.attended, m.hidden, rows, ADD) for _, w in layers],
            "gate_up": lambda: [m.multiply(w["gate_up"], m.normed, m.inner, rows, GATE) for _, w in layers],
            "down": lambda: [m.multiply(w["down"], m.inner, m.hidden, rows, ADD) for _, w in layers],
            "head": lambda: m.multiply(m.head, m.normed, m.logits, rows, STORE),
            "pick": lambda: m.answer(rows),
        }
        spans = {name: self.timed(record, 10) for name, record in kinds.items()}
        m.set_tasks(tasks_for(rows, GUESSES))
        spans["guesses"] = self.timed(lambda: m.answer(rows), 10)
        return spans

    def bytes_of(self, name):
        if name == "head":
            return self.model.head.bytes
        return sum(w[name].bytes for w in self.model.layers)


class Cublas:
    """The same matmuls through PyTorch, where it is installed."""

    def __init__(self, shape):
        import torch

        self.torch, self.shape = torch, shape
        make = lambda n, k: torch.randn(n, k, device="cuda", dtype=torch.bfloat16) / k**0.5
        self.layers = [[make(n, k) for _, n, k in shape.matrices()] for _ in range(shape.layers)]
        self.head = make(shape.vocab, shape.hidden)

    def run(self, rows, times=20):
        torch = self.torch
        every = [w for layer in self.layers for w in layer] + [self.head]
        x = {w.shape[1]: torch.randn(rows, w.shape[1], device="cuda", dtype=torch.bfloat16) for w in every}
        y = {w.shape[0]: torch.empty(rows, w.shape[0], device="cuda", dtype=torch.bfloat16) for w in every}

        def all_of_them():
            for w in every:
                torch.mm(x[w.shape[1]], w.t(), out=y[w.shape[0]])

        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                all_of_them()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            all_of_them()
        for _ in range(3):
            graph.replay()
        events = [torch.cuda.Event(enable_timing=True) for _ in range(times + 1)]
        events[0].record()
        for event in events[1:]:
            graph.replay()
            event.record()
        torch.cuda.synchronize()
        spans = sorted(a.elapsed_time(b) / 1e3 for a, b in zip(events, events[1:]))
        return spans[len(spans) // 2]

    def close(self):
        self.layers, self.head = [], None
        self.torch.cuda.empty_cache()
