"""Whether a row's logits, keys and values are its own: nothing around it changes a bit."""

import random

from kernels import GUESSES, PICK, Task
from model import PAGE, Model, Row, differing_bits
from truth import distance

BUCKETS = (1, 8, 16, 32, 64)


def bucket_for(rows):
    return next(b for b in BUCKETS if rows <= b)


class Judge:
    """Runs the same rows in many surroundings."""

    def __init__(self, gpu, kernels, shape):
        self.gpu, self.model = gpu, Model(gpu, kernels, shape, pages=160, context=640, seed=3)
        self.random = random.Random(5)
        self.vocab = shape.vocab
        self.text = [self.random.randrange(self.vocab) for _ in range(300)]
        # Text 0 in pages 0.. in order, text 1 in pages 79.. downwards, trees from page 100 on.
        self.model.set_pages(list(range(40)) + list(range(79, 39, -1)))
        self.first_page = (0, 40)
        self.findings = []
        # Relative distance of the logits from a slow reference, where there is one.
        self.distance = None

    def slot(self, text, position):
        page = position // PAGE if text == 0 else 79 - position // PAGE
        return page * PAGE + position % PAGE

    def appended(self, text, position, token):
        return Row(token, position, self.slot(text, position), position + 1, self.first_page[text])

    def compute(self, rows, exact=False):
        """Logits by row, in the bucket that serves so many rows."""
        bucket = len(rows) if exact else bucket_for(len(rows))
        self.model.set_rows(rows)
        self.model.forward(bucket)
        return self.model.read_logits(len(rows))

    def note(self, name, pairs):
        compared = bits = 0
        for a, b in pairs:
            compared += 8 * len(a)
            bits += differing_bits(a, b)
        self.findings.append((name, compared, bits))

    def prefill(self, text, chunk, upto=None):
        """Appends the text in chunks; the logits of every position."""
        logits = []
        for first in range(0, upto or len(self.text), chunk):
            part = self.text[first:min(first + chunk, upto or len(self.text))]
            rows = [self.appended(text, first + i, token) for i, token in enumerate(part)]
            logits += self.compute(rows, exact=chunk > 64)
        return logits

    def run(self):
        alone = self.prefill(0, 1)
        self.distance = distance(self.gpu, self.model, self.text, alone)
        places = [self.slot(0, p) for p in (0, 1, 126, 127, 128, 129, 255, 256, 299)]
        cached = [self.model.read_position(s) for s in places]
        for chunk in (3, 16, 33, 64, 128):
            other = self.prefill(1, chunk)
            self.note(f"300 positions at once in {chunk}s, not one by one", zip(alone, other))
            moved = [self.model.read_position(self.slot(1, p)) for p in (0, 1, 126, 127, 128, 129, 255, 256, 299)]
            self.note(f"keys and values in {chunk}s", zip(cached, moved))
        self.counts(alone)
        self.trees(alone)
        self.graphs()
        return self.findings

    def counts(self, alone):
        """The same rows among 1 to 64, each time beside others and in another place."""
        known = {}
        for count in range(1, 65):
            # Mates: rows of the other text, which see other lengths. Only positions that are cached are seen.
            mine = self.random.sample(range(300), min(count, 3))
            others = self.random.sample(range(300), count - len(mine))
            rows = [(0, p) for p in mine] + [(1, p) for p in others]
            self.random.shuffle(rows)
            got = self.compute([self.appended(t, p, self.text[p]) for t, p in rows])
            known[count] = [(alone[p], logits) for (_, p), logits in zip(rows, got)]
        for bucket, least in zip(BUCKETS, (1, 2, 9, 17, 33)):
            pairs = [pair for count in range(least, bucket + 1) for pair in known[count]]
            self.note(f"{least} to {bucket} rows beside strangers", pairs)

    def trees(self, alone):
        """Rows of a tree behind a text of 120, 127 and 250 positions against the text that goes on like them."""
        for committed in (120, 127, 250):
            tokens = self.text[committed:committed + 20]
            slots = [100 * PAGE + (i * 37) % 256 for i in range(40)]
            # Siblings that nobody asks for stand between the rows of the chain.
            rows = []
            for depth, token in enumerate(tokens):
                path = slots[:depth + 1]
                rows.append(Row(token, committed + depth, slots[depth], committed, 0, path))
                rows.append(Row((token + 1) % self.vocab, committed + depth, slots[20 + depth], committed, 0,
                                path[:-1] + [slots[20 + depth]]))
            got = self.compute(rows)
            chain = zip(alone[committed:committed + 20], got[::2])
            self.note(f"a tree behind {committed} positions, not a chain", chain)
            pairs = zip((self.model.read_position(self.slot(0, committed + d)) for d in range(20)),
                        (self.model.read_position(slots[d]) for d in range(20)))
            self.note(f"keys and values of the tree behind {committed}", pairs)
            # Deeper rows in a later step, whose parents were computed before.
            later = self.compute(rows[30:])
            self.note(f"the tree's last rows in a later step, behind {committed}", zip(got[30:], later))

    def graphs(self):
        for bucket in BUCKETS:
            graph = self.gpu.graph(lambda: self.model.forward(bucket))
            pairs = []
            for live in {bucket, max(1, bucket - 3)}:
                rows = [self.appended(0, p, self.text[p]) for p in self.random.sample(range(300), live)]
                eager = self.compute(rows, exact=False)
                self.model.set_rows(rows)
                self.gpu.set_bytes(self.model.logits, 0xff, bucket * self.vocab * 4)
                self.gpu.replay(graph)
                pairs += zip(eager, self.model.read_logits(live))
            self.note(f"a graph of {bucket} rows, not eager", pairs)


def asks_are_invariant(gpu, model, rows):
    """Answers of rows together and each alone: pairs of bytes."""
    tasks = []
    for i in range(rows):
        kind = GUESSES if i % 2 else PICK
        tasks.append(Task(
            kind=kind, row=i, guesses=8, of=-1, temperature=(0.0, 0.7, 1.0)[i % 3], top_k=(0, 50, 0, 1000)[i % 4],
            top_p=(1.0, 0.9, 1.0)[i % 3], min_p=(0.0, 0.05)[i // 4 % 2], seed=9, position=100 + i, repetition=1.0,
        ))
    model.set_tasks(tasks)
    model.answer(rows)
    together = [described(a) for a in model.read_answers(rows)]
    pairs = []
    for i, task in enumerate(tasks):
        model.set_tasks([task])
        model.answer(1)
        pairs.append((together[i], described(model.read_answers(1)[0])))
    return pairs


def described(answer):
    """The part of an answer that was written, as bytes."""
    head = bytes(answer)[:8]
    if answer.state != 1:
        return head
    guesses = bytes(answer.guesses)
    if answer.count == 1:
        return head + guesses[:4] + guesses[8:12]
    return head + guesses[:16 * answer.count]
