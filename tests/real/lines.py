#!/usr/bin/env python3
"""Writes lines.json: 1,000 odd lines of text, always the same ones.

    tests/real/lines.py

Mixed scripts, digits, runs of white space, emoji with joiners, control characters, words that are cut in the middle of a token,
code. They are in the repository, so that the tests that encode them need no Python.
"""

import json
import pathlib
import random

SEED = 20261127
COUNT = 1000

WORDS = {
    "latin": "the of and to in is that for it was on are as with they be at this have from or one had by word but not what all were "
    "we when your can said there use an each which she do how their if will up other about out many then them these so some her "
    "would make like him into time has look two more write go see number no way could people my than first water been call who oil "
    "its now find long down day did get come made may part antidisestablishmentarianism supercalifragilistic internationalization",
    "accents": "café naïve Übergrößenträger señor façade smörgåsbord Čeština łódź İstanbul ışık ñandú œuvre Ærøskøbing Þingvellir",
    "cyrillic": "привет мир быстрая коричневая лиса Ёлка объявление съёмка київ ґанок",
    "greek": "γειά σου κόσμε Ὀδυσσεύς ἄνθρωπος λόγος ΣΊΣΥΦΟΣ",
    "han": "日本語 中文分词 機器學習 漢字かな交じり文 東京都 人工智能 龍",
    "kana": "こんにちは カタカナ ひらがな ｶﾀｶﾅ ゔ っ",
    "hangul": "안녕하세요 세계 한국어 형태소 가각갂",
    "rtl": "مرحبا بالعالم العَرَبِيَّة שלום עולם עִבְרִית پارسی",
    "indic": "नमस्ते दुनिया क्षत्रिय தமிழ் বাংলা ไทย ภาษาไทย ခမြန်မာ",
    "other": "ⴰⵎⴰⵣⵉⵖ ᏣᎳᎩ 𐌰𐌱𐌲 𝔣𝔯𝔞𝔨𝔱𝔲𝔯 ①②③ Ⅷ ½ ²³ ﬁﬂ Å Å ſ ß ẞ",
}
EMOJI = ["🙂", "👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇫🇷", "🇩🇪🇯🇵", "❤️", "☎", "🧑🏿‍🚀", "1️⃣", "🫠", "\u200d", "\ufe0f", "👨‍", "🏴󠁧󠁢󠁳󠁣󠁴󠁿"]
SPACES = [" ", "  ", "   ", "    ", " " * 7, " " * 16, " " * 33, "\t", "\t\t", " \t ", "\n", "\n\n", "\n\n\n\n", "\r\n", "\r", " \n ", "\u00a0",
          "\u2003", "\u3000", "\u200b", "\u2028", "\u0085", "\x0b", "\x0c"]
CONTROLS = ["\x00", "\x01", "\x07", "\x08", "\x1b[31m", "\x1b[0m", "\x7f", "\x80", "\x9f", "\ufeff", "\u202e", "\u2066", "\u00ad", "\ufffd",
            "\ue000", "\U000f0000", "\U0010fffd", "\u0301", "e\u0301", "a\u0308\u0323", "\u1100\u1161\u11a8"]
NUMBERS = ["0", "7", "42", "007", "123", "1234", "12345", "1234567890", "3.14159", "1,000,000", "1e-9", "0xDEADBEEF", "0b1010", "२०२६", "٣٤٥", "１２３", "v2.0.1",
           "2026-11-27", "23:59:60", "192.168.0.1", "+49 30 1234", "50%", "1/2", "x86_64", "10²"]
CODE = ["fn main() {", "    let x = &mut y[..n];", "if (a&&b||!c) { return -1; }", "def f(x: int=0, *args, **kw) -> None:", "\t\tfor i in range(10):",
        "#include <stdio.h>", "SELECT * FROM t WHERE a<>'b';", "<div class=\"x\">&nbsp;</div>", "{\"a\": [1, 2.5, null]}", "$ grep -rn 'foo\\b' | wc -l", "// TODO: ???",
        "a->b::c<d>()", "x = y if z else w", "===", "!==", "...", "…", "—", "``", "```python", "~~~", "\\n\\t", "C" ":\\Users\\x", "https://a.b/c?d=e&f=g#h", "snake_case_name",
        "camelCaseName", "SCREAMING_CASE", "__init__", "@property", "λx.x", "∀x∈ℝ", "½±∞≠≤"]
MARKS = ["'", "''", "\"", "'s", "'S", "'ll", "'LL", "don't", "I'M", "we're", "o'clock", "’s", "rock'n'roll", "-", "--", "---", "(", ")", "[]", "{}", "!!!", "?!", "#", "&", "*",
         "**bold**", "_", "__", "|", "\\", "/", "//", "^", "<", ">", "<<", ">>", "=>", ":)", ";-)", "«", "»", "„", "“", "¿", "¡", "。", "、", "·", "▁", "▁▁", "Ġ", "Ċ", "<0x0A>"]
SPELLED = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "</s>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<unk>", "[INST]", "<|im_sta", "rt|>",
           "<|fim_prefix|>", "<|", "|>", "<pad>", "<unused7>", "<table>", "</h1>", "[multimodal]"]


def mixed(dice):
    script = dice.choice(list(WORDS))
    return " ".join(dice.choice(WORDS[script].split(" ")) for _ in range(dice.randint(1, 6)))


def broken(dice):
    """Words cut where no token ends, put together again."""
    word = dice.choice(WORDS["latin"].split(" ")) + dice.choice(WORDS["latin"].split(" "))
    at = dice.randint(1, len(word) - 1)
    return word[at:] + dice.choice(["", "", "'", "-", "_", "\u00ad", "\u200b"]) + word[:at]


def cased(dice):
    word = dice.choice(WORDS["latin"].split(" "))
    return "".join(dice.choice((str.upper, str.lower))(letter) for letter in word)


def anything(dice):
    """Characters from all over Unicode."""
    found = []
    while len(found) < dice.randint(1, 8):
        point = dice.choice((dice.randint(0, 0x7F), dice.randint(0x80, 0x7FF), dice.randint(0x800, 0xFFFF), dice.randint(0x10000, 0x10FFFF)))
        if not 0xD800 <= point <= 0xDFFF:
            found.append(chr(point))
    return "".join(found)


def runs(dice):
    return dice.choice(["a", "=", "-", " ", "\n", "0", "ab", "é", "日", "🙂", "!", "\t", ". "]) * dice.randint(2, 40)


PARTS = [mixed, mixed, mixed, broken, cased, anything, runs] + [
    lambda dice, all=all: dice.choice(all) for all in (EMOJI, SPACES, SPACES, CONTROLS, NUMBERS, NUMBERS, CODE, CODE, MARKS, MARKS)
]


def line(dice):
    parts = [dice.choice(PARTS)(dice) for _ in range(dice.randint(1, 9))]
    if dice.random() < 0.1:
        parts.insert(dice.randint(0, len(parts)), dice.choice(SPELLED))
    glue = dice.choice(["", "", " ", " "])
    return glue.join(parts)


def main():
    dice = random.Random(SEED)
    lines = ["", " ", "\n", "\t", "a", "\u0301", "\x00"]
    while len(lines) < COUNT:
        lines.append(line(dice))
    folder = pathlib.Path(__file__).parent
    text = ",\n".join(json.dumps(one, ensure_ascii=True) for one in lines)
    (folder / "lines.json").write_text(f"[\n{text}\n]\n")


if __name__ == "__main__":
    main()
