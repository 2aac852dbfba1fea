"""Safetensors files with odd headers, for a fuzz test: most are wrong in one place, some are only unusual."""

from __future__ import annotations

from random import Random

from yaie_async.model.dtypes import BY_CODE

# JSON values that are odd as a dimension, an offset, a dtype, a field, a tensor or metadata.
_VALUES = (
    *("0", "-0", "1", "-1", "2", "6", "12", "01", "+1", "1.0", "2e0", "1E+2", "-1e-999", "1e308", "1e400", "-1e400"),
    *("4294967296", "9223372036854775808", "18446744073709551615", "18446744073709551616", "1" * 308, "1" * 400),
    *("1" * 5000, "NaN", "Infinity", "-Infinity", "null", "true", "False", "", "[]", "{}", "[[]]", '{"a":{"a":[]}}'),
    *('""', '"F16"', '"f16"', '"F\\u00316"', '"F32"', '"F4"', '"F17"', '"\\ud800"', '"\\ud83d\\ude00"', '"\\udc00"'),
    *('"\\ud83d\\u0041"', '"\\\\ud800"', '"\\uD83D\\uDE00\\uD83D"', '"\\x"', '"\\u12"', '"\x01"', '"\x7f"', '"é"'),
    *('{"F16":null}', '{"F16":null,"F16":null}', '{"F16":[]}', '{"F17":null}', '["F16",[],[0,2]]', '["F16",[]]'),
    *("[2,3]", "[0,12]", "[12,0]", "[0,0]", "[6]", "[6.0]", "[0,0,0]", '{"0":0,"1":12}', '{"a":"b"}', '{"a":1}'),
    *('{"a":"b","a":null}', '{"a":1,"a":2}', '{"shape":1,"shape":2}', "[0,9223372036854775808,4]", "[1,2,]"),
    *(f"[9223372036854775808,4,{last}]" for last in "01"),
)
_NAMES = (
    '"a"',
    '"b"',
    '""',
    '"dtype"',
    '"shape"',
    '"data_offsets"',
    '"__metadata__"',
    '"__metadat\\u0061__"',
    '"\\u0000"',
)
_GAPS = (" ", "\t\r\n", "\f", "\0", "\ufeff", ",", "{}", "]", "//")
_CODES = tuple(BY_CODE)


def odd_header(random: Random) -> bytes:
    """One file. It is small, whatever its header says."""
    pairs, size = [], 0
    for name in random.sample(("a", "b", "c.weight", "é"), random.randrange(4)):
        entry, size = _tensor(random, size)
        pairs.append((f'"{name}"', entry))
    if random.random() < 0.3:
        pairs.append(('"__metadata__"', random.choice(('{"format":"pt"}', "{}", "null", _value(random)))))
    random.shuffle(pairs)
    for _ in range(random.choice((0, 0, 1, 1, 2))):
        pairs.insert(random.randrange(len(pairs) + 1), _pair(random, pairs))
    text = "{" + ",".join(f"{name}:{value}" for name, value in pairs) + "}"
    for _ in range(random.choice((0, 0, 0, 1, 1, 2))):
        text = _damaged(random, text)
    header = text.encode()
    if random.random() < 0.03:
        header = header.replace(b"a", random.choice((b"\xff", b"\xc0\x80", b"\xed\xa0\x80")), 1)
    if random.random() < 0.05:
        size += random.choice((-2, -1, 1, 2, 12))
    return len(header).to_bytes(8, "little") + header + random.randbytes(max(size, 0))


def _tensor(random: Random, start: int) -> tuple[str, int]:
    code = random.choice(_CODES)
    shape = [random.choice((0, 1, 2, 3, 4, 8)) for _ in range(random.randrange(4))]
    if random.random() < 0.01:
        shape += [1] * 5000
    elements = 1
    for dimension in shape:
        elements *= dimension
    stop = start + elements * BY_CODE[code].bits // 8
    fields = [('"dtype"', f'"{code}"'), ('"shape"', str(shape)), ('"data_offsets"', f"[{start},{stop}]")]
    if random.random() < 0.1:
        fields[random.randrange(3)] = (random.choice(_NAMES), _value(random))
    if random.random() < 0.1:
        field = random.randrange(3)
        fields[field] = (fields[field][0], _value(random))
    if random.random() < 0.1:
        fields.insert(random.randrange(len(fields) + 1), _pair(random, fields))
    if random.random() < 0.05:
        return "[" + ",".join(value for _, value in fields) + "]", stop
    if random.random() < 0.3:
        random.shuffle(fields)
    return "{" + ",".join(f"{name}:{value}" for name, value in fields) + "}", stop


def _pair(random: Random, others: list[tuple[str, str]]) -> tuple[str, str]:
    """A pair with a name or a value of its own, or with those of another one."""
    name, value = random.choice(others) if others else (random.choice(_NAMES), "{}")
    if random.random() < 0.5:
        name = random.choice(_NAMES)
    if random.random() < 0.5:
        value = _value(random)
    return name, value


def _value(random: Random) -> str:
    if random.random() < 0.2:
        depth = random.choice((3, 123, 124, 125, 126, 127, 128, 129, 500, 20_000))
        opening, closing = random.choice((("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")))
        return opening * (depth // len(closing)) + random.choice(("1", "[]", '"]"')) + closing * (depth // len(closing))
    return random.choice(_VALUES)


def _damaged(random: Random, text: str) -> str:
    place = random.randrange(len(text) + 1)
    kind = random.randrange(4)
    if kind == 0:
        return text[:place] + text[place + 1 :]
    if kind == 1:
        return text[:place] + random.choice(_GAPS) + text[place:]
    if kind == 2:
        return random.choice((random.choice(_GAPS) + text, text + random.choice(_GAPS)))
    return text.replace(":", random.choice((": ", " :", ":\n")), 1)
