"""A thousand lines in ten scripts and more, and the tokens that llama.cpp makes of them.

    pip install xllamacpp==2026.10.11549
    python tests/real/tokens_oracle.py FOLDER     # with the two GGUF files named in `MODELS`

Writes `lines.json`, from the word lists below, and `tokens.json`: for each model a hash of the ids
of each line. With `--lines` only the lines; with `--show MODEL LINE` the ids of one line (from 0).
llama.cpp is called through its C interface, and reads the vocabulary alone.
"""

import argparse
import ctypes
import importlib.util
import json
import random
from pathlib import Path

HERE = Path(__file__).parent
MODELS = ["SmolLM2-135M-Instruct.Q4_1.gguf", "gemma-3-270m-q4_k_m.gguf"]

WORDS = {
    "latin": "the capital of France is Paris and a small river runs through every old town "
    "because nobody wanted to build bridges there. In January 2024, Dr. Smith's mother-in-law "
    "didn't know what they'd say; we've, you'll, I'm, she'D, THEY'RE O'Neill rock'n'roll "
    "internationalization Über schöne Straße größer Fußgänger déjà vu élève français garçon "
    "naïve œuvre niño mañana corazón çalışıyor değil İstanbul ılık żółć źdźbło łódka příliš "
    "žluťoučký kůň smörgåsbord århus øre ţară împreună người tiếng Việt đường phở",
    "cyrillic": "столица Франции большой город и маленькая река течёт через старый мост потому что "
    "никто не хотел строить новые дома ёжик объявление Київ їжак ґанок Ћирилица њушка Привет мир "
    "электричество взаимодействие понедельник",
    "greek": "η πρωτεύουσα της Γαλλίας είναι μεγάλη πόλη και ο ποταμός περνάει από παλιά γέφυρα "
    "γιατί κανείς δεν ήθελε Ἀθῆναι φιλοσοφία λόγος Ωμέγα άνθρωπος ευχαριστώ",
    "hebrew": "בירת צרפת היא עיר גדולה והנהר עובר דרך הגשר הישן כי אף אחד לא רצה לבנות שָׁלוֹם עוֹלָם "
    "ספר ילדים בית־ספר צה״ל",
    "arabic": "عاصمة فرنسا مدينة كبيرة والنهر يمر عبر الجسر القديم لأن أحدا لم يرد أن يبني مَرْحَبًا "
    "بِالعَالَم كتاب الأطفال فارسی می‌خواهم پرتقال گچ اردو ہے لاہور ٢٠٢٤ ۱۲۳",
    "devanagari": "फ्रांस की राजधानी एक बड़ा शहर है और नदी पुराने पुल से बहती है क्योंकि कोई नया घर "
    "नहीं बनाना चाहता था नमस्ते दुनिया विद्यार्थी क्षत्रिय ज्ञान श्री २०२४ हिन्दी",
    "thai": "เมืองหลวงของฝรั่งเศสคือปารีส แม่น้ำไหลผ่านสะพานเก่า เพราะไม่มีใครอยากสร้างบ้านใหม่ "
    "สวัสดีชาวโลก กรุงเทพมหานคร น้ำใจ เด็กนักเรียน ๒๕๖๗",
    "chinese": "法国的首都是巴黎 这条小河流过每一座老城 因为没有人想在那里建桥 你好，世界！ 電腦網路 "
    "臺灣繁體字 学习语言模型 二〇二四年 人工智能 春眠不觉晓 “引号”、《书名》 𠀀𠮷𡃁",
    "japanese": "フランスの首都はパリです。 小さな川が古い町を流れている こんにちは世界 ひらがな カタカナ "
    "漢字仮名交じり文 コンピュータ ﾊﾝｶｸ 「かぎかっこ」 東京都 々 ー ヴァイオリン がんばって",
    "korean": "프랑스의 수도는 파리입니다 작은 강이 오래된 마을을 지나간다 안녕하세요 세계 한국어 학습 "
    "컴퓨터 아무도 다리를 짓고 싶어하지 않았다 ㅋㅋㅋ 대한민국 뷁",
    "other": "বাংলা ভাষা தமிழ் மொழி తెలుగు ಕನ್ನಡ മലയാളം ગુજરાતી ਪੰਜਾਬੀ සිංහල ქართული ენა հայերեն "
    "አማርኛ မြန်မာ ខ្មែរ ລາວ བོད་སྐད ᏣᎳᎩ ⵜⵉⴼⵉⵏⴰⵖ ᚠᚢᚦ 𐌰𐌽𐌳 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟘𝟙𝟚 Ⅷ ½ ² ① ㈱ ｆｕｌｌ １２３",
}

EMOJI = "😀 🎉 👍🏽 👩‍💻 👨‍👩‍👧‍👦 🇩🇪 🇫🇷🇯🇵 ❤️ ☃ ✈️ 🦀 🏳️‍🌈 1️⃣ ⌚ ™ © ☺️ 🤷🏻‍♀️".split()
PUNCTUATION = [
    ".", ",", "!", "?", "...", "…", ";", ":", " - ", " – ", "—", "!!!", "?!", "(", ")", "[", "]",
    "«", "»", "„", "“", "”", "‘", "’", "'", '"', "/", "\\", "|", "&", "@", "#", "$", "€", "£", "%",
    "^", "*", "_", "~", "`", "=", "+", "<", ">", "{", "}", "·", "•", "†", "§", "¿", "¡", "、", "。",
    "《", "》", "،", "؟", "।", "----", "=====", "....", "****", "____", "####", "~~~~", "//", "/*",
]
WHITESPACE = [
    " ", "  ", "   ", "    ", "\t", "\t\t", " \t ", "\n", "\n\n", "\n\n\n", " \n", "\n ", "\r\n",
    "\r", "\u00a0", "\u3000", "\u2003", "\u200b", "\u2028", "\ufeff", "\u000b", "\u0085", " " * 17,
    " " * 35, "\n" * 7, "\n" * 33, "\t" * 9, "\t" * 40, "  \n\n  ", "\n\t\n", " \u00a0 ", "\u200d",
]
MARKS = [
    "<s>", "</s>", "<unk>", "<pad>", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>",
    "<|endoftext|>", "<start_of_turn>", "<end_of_turn>", "<unused7>", "<mask>", "<table>", "</td>",
    "<0x41>", "<0x0A>", "<|im_start|>user\n", "<start_of_turn>model\n", "<h1>", "[multimodal]", "▁",
    "▁▁", "Ġ", "Ċ", "<file_sep>", "<reponame>", "<|im_start", "im_end|>", "<start_of_image>",
]
CODE = [
    "def f(x: int) -> int:\n    return x ** 2  # square\n",
    'fn main() {\n\tprintln!("{:?}", vec![1, 2, 3]);\n}\n',
    "for (int i = 0; i < n; ++i) { a[i] += b[i] * 0x1F; }",
    "SELECT name, COUNT(*) FROM users WHERE id >= 10 GROUP BY 1;",
    '{"key": [1, 2.5e-3, null, true], "nested": {"a": "b\\n"}}',
    "https://example.org/path?query=value&x=%20#fragment",
    "<div class=\"a b\" id='c'>text &amp; more</div>",
    "git commit -m 'fix: off-by-one' && git push --force",
    "\\begin{equation} e^{i\\pi} + 1 = 0 \\end{equation}",
    "if a!=b&&c||!d:pass;x=y=z==1;lambda*args,**kw:None",
    "camelCaseIdentifier snake_case_name SCREAMING_CASE kebab-case-name HTTPServerError2XX",
    "        return self.items[-1]\n\n\nclass B(A):\n\n    pass",
    "user@example.com +49 (30) 123456-78 192.168.0.1 ::1 v1.2.3-rc.4",
    "#!/usr/bin/env bash\nset -euo pipefail\necho \"$HOME/${x:-y}\" | awk '{print $1}'",
]


def number(chance):
    kind = chance.randrange(7)
    value = chance.randrange(10 ** chance.randrange(1, 13))
    return [
        f"{value}",
        f"{value:,}",
        f"{value / 1000:.3f}",
        f"-{value}",
        f"{value % 24:02}:{value % 60:02}",
        f"{1900 + value % 200}-{value % 12 + 1:02}-{value % 28 + 1:02}",
        f"0x{value:x}",
    ][kind]


def sentence(chance, words):
    parts = []
    for _ in range(chance.randrange(2, 12)):
        parts.append(chance.choice(words))
        if chance.random() < 0.12:
            parts[-1] += chance.choice(PUNCTUATION)
        if chance.random() < 0.08:
            parts.append(number(chance))
    joined = "" if chance.random() < 0.1 else " "
    return joined.join(parts) + chance.choice([".", "", "!", "?", "。", "…", "\n"])


def lines(seed=16, count=1000):
    chance = random.Random(seed)
    words = {script: text.split() for script, text in WORDS.items()}
    every = [word for script in words.values() for word in script]
    made = ["", " ", "\n", "a", " a", "a ", "  a", "\ta", "é", "e\u0301", "\u0000", "\u007f", "\ue000"]
    makers = [lambda script=script: sentence(chance, words[script]) for script in words] * 2
    makers += [
        lambda: sentence(chance, every),
        lambda: " ".join(number(chance) for _ in range(chance.randrange(1, 9))),
        lambda: "".join(chance.choice(PUNCTUATION) for _ in range(chance.randrange(1, 12))),
        lambda: "".join(chance.choice(EMOJI + [" ", "!"]) for _ in range(chance.randrange(1, 9))),
        lambda: "".join(
            chance.choice(every) + chance.choice(WHITESPACE) for _ in range(chance.randrange(1, 9))
        ),
        lambda: "".join(chance.choice(WHITESPACE) for _ in range(chance.randrange(1, 6))),
        lambda: "".join(
            chance.choice(MARKS) + chance.choice(["", " ", chance.choice(every), "\n"])
            for _ in range(chance.randrange(1, 6))
        ),
        lambda: chance.choice(CODE) + chance.choice(["", "\n", chance.choice(CODE)]),
        lambda: chance.choice("aA-=_.hxо。가ก ") * chance.randrange(1, 90),
        lambda: "".join(
            chr(chance.choice([chance.randrange(32, 0x250), chance.randrange(0x250, 0xD800),
                               chance.randrange(0xE000, 0x20000)]))
            for _ in range(chance.randrange(1, 12))
        ),
    ]
    while len(made) < count:
        made.append(chance.choice(makers)())
    return made


class Parameters(ctypes.Structure):
    """`llama_model_params`, of which only `vocab_only` is set: larger than it is."""

    _fields_ = [("bytes", ctypes.c_ubyte * 256)]


VOCAB_ONLY = 72


class Llama:
    """The vocabulary of a GGUF file, as llama.cpp reads it."""

    def __init__(self, file):
        package = Path(importlib.util.find_spec("xllamacpp").origin).parent
        self.library = ctypes.CDLL(str(next(package.glob("xllamacpp*.so"))))
        self.library.llama_model_default_params.restype = Parameters
        load = self.library.llama_model_load_from_file
        load.restype, load.argtypes = ctypes.c_void_p, [ctypes.c_char_p, Parameters]
        vocabulary = self.library.llama_model_get_vocab
        vocabulary.restype, vocabulary.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
        self.library.llama_tokenize.argtypes = [
            ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.POINTER(ctypes.c_int32),
            ctypes.c_int32, ctypes.c_bool, ctypes.c_bool,
        ]
        silent = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
        self.silent = silent(lambda level, text, data: None)
        self.library.llama_log_set(self.silent, None)
        parameters = self.library.llama_model_default_params()
        parameters.bytes[VOCAB_ONLY] = 1
        model = load(str(file).encode(), parameters)
        if not model:
            raise ValueError(f"{file}: llama.cpp does not load it")
        self.vocabulary = vocabulary(model)

    def encode(self, text, special=True):
        """Ids of a text, with the tokens around it, and special tokens found in it."""
        data = text.encode()
        room = (ctypes.c_int32 * (len(data) + 8))()
        count = self.library.llama_tokenize(
            self.vocabulary, data, len(data), room, len(room), special, True
        )
        assert count >= 0, (text, count)
        return list(room[:count])


def fnv(ids):
    """FNV-1a in 64 bits over the ids, each in four bytes, low byte first."""
    value = 0xCBF29CE484222325
    for byte in b"".join(i.to_bytes(4, "little") for i in ids):
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return f"{value:016x}"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--lines", action="store_true")
    parser.add_argument("--show", nargs=2, metavar=("MODEL", "LINE"))
    arguments = parser.parse_args()
    texts = lines()
    if arguments.show:
        model, line = arguments.show
        print(Llama(arguments.folder / model).encode(texts[int(line)]))
        return
    written = ",\n".join(json.dumps(text, ensure_ascii=False) for text in texts)
    (HERE / "lines.json").write_text(f"[\n{written}\n]\n", encoding="utf-8")
    if arguments.lines:
        return
    hashes = {}
    for model in MODELS:
        llama = Llama(arguments.folder / model)
        hashes[model] = [fnv(llama.encode(text)) for text in texts]
    (HERE / "tokens.json").write_text(json.dumps(hashes, indent=0) + "\n")


if __name__ == "__main__":
    main()
