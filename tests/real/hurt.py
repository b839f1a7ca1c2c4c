"""Copies of a GGUF file whose model is a little wrong: helpers whose guesses come true often, but not always."""

import random
import struct

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
TEXT, LIST = 8, 9
TENSOR = "output_norm.weight"


class Header:
    """Enough of a GGUF file's header to find a tensor."""

    def __init__(self, file):
        self.file = file
        magic, version, tensors, pairs = struct.unpack("<4sIQQ", file.read(24))
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError("it is no GGUF file of version 2 or 3")
        alignment = 32
        for _ in range(pairs):
            key, kind = self.text(), self.number("I")
            if key == "general.alignment":
                alignment = self.number("I")
            else:
                self.skip(kind)
        self.tensors = {}
        for _ in range(tensors):
            name, rank = self.text(), self.number("I")
            shape = [self.number("Q") for _ in range(rank)]
            self.tensors[name] = (shape, self.number("I"), self.number("Q"))
        self.data = -(-file.tell() // alignment) * alignment

    def number(self, kind):
        return struct.unpack(f"<{kind}", self.file.read(struct.calcsize(f"<{kind}")))[0]

    def text(self):
        return self.file.read(self.number("Q")).decode(errors="replace")

    def skip(self, kind):
        if kind == TEXT:
            self.file.seek(self.number("Q"), 1)
        elif kind == LIST:
            of, count = self.number("I"), self.number("Q")
            if of in SIZES:
                self.file.seek(SIZES[of] * count, 1)
            else:
                for _ in range(count):
                    self.skip(of)
        else:
            self.file.seek(SIZES[kind], 1)


def hurt(path, copy, by):
    """Writes a copy in which what the last norm multiplies with is off by a share of `by`, always the same way."""
    copy.write_bytes(path.read_bytes())
    with open(copy, "r+b") as file:
        header = Header(file)
        (width,), kind, offset = header.tensors[TENSOR]
        if kind != 0:
            raise ValueError(f"{TENSOR} is not stored as F32")
        dice = random.Random(1)
        file.seek(header.data + offset)
        gains = struct.unpack(f"<{width}f", file.read(4 * width))
        file.seek(header.data + offset)
        file.write(struct.pack(f"<{width}f", *(gain * (1 + by * dice.gauss(0, 1)) for gain in gains)))
