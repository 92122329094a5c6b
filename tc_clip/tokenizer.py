"""Tokenizers: text to token ids. CLIP's byte-pair tokenizer is this module's own.

Method: byte-level byte-pair encoding as in CLIP; the merges table is OpenAI's public vocabulary file (see NOTICE).
Ids: 0..255 a byte inside a word, 256..511 a byte that ends a word, then one id per merge in the order of the table,
then the start and the end token.
"""

import functools
import gzip
import html
import itertools
import json
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import ftfy
import regex
import torch

START_TOKEN = 49406
END_TOKEN = 49407

_VOCABULARY_FILE = Path(__file__).parent / "assets" / "bpe_simple_vocab_16e6.txt.gz"
_NUM_BYTES = 256
_FIRST_MERGE = 2 * _NUM_BYTES
_END_OF_WORD = "</w>"
_SPECIAL_TOKENS = {"<|startoftext|>": START_TOKEN, "<|endoftext|>": END_TOKEN}

# Words of letters, single digits, runs of anything else; English contractions and the special tokens stand alone.
_WORD = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'(?:s|t|re|ve|m|ll|d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", regex.IGNORECASE
)


def tokenize(texts: Sequence[str] | str, context_length: int = 77) -> torch.Tensor:
    """Return the token ids of texts, int64 (len(texts), context_length): start, text, end, zeros.

    Raises ValueError for a text that does not fit, with the text, its number of tokens and the limit. No text is cut.
    """
    if isinstance(texts, str):
        texts = [texts]
    tokens = torch.zeros(len(texts), context_length, dtype=torch.long)  # (len(texts), L)
    for row, text in zip(tokens, texts, strict=True):
        ids = [START_TOKEN, *encode(text), END_TOKEN]
        if len(ids) > context_length:
            raise ValueError(
                f"text {text!r} has {len(ids)} tokens with its start and end, more than context_length={context_length}"
            )
        row[: len(ids)] = torch.tensor(ids)
    return tokens


def count_tokens(text: str) -> int:
    """Return the smallest context_length of the text, start and end token included."""
    return len(encode(text)) + 2


def encode(text: str) -> list[int]:
    """Return the token ids of one text, without start and end token.

    The text is repaired (ftfy), HTML entities are resolved, white space is collapsed and letters are lower-cased.
    """
    ids: list[int] = []
    for word in _WORD.findall(_clean(text)):
        ids.extend(_encode_word(word))
    return ids


def _clean(text: str) -> str:
    # Twice, since crawled captions carry entities of entities ("&amp;lt;"). CLIP was trained on text treated this way.
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


@functools.lru_cache(maxsize=65536)
def _encode_word(word: str) -> tuple[int, ...]:
    """Return the ids of one word: its bytes, with the earliest merge of the table applied until none fits."""
    if word in _SPECIAL_TOKENS:
        return (_SPECIAL_TOKENS[word],)
    byte_ids, merges = _load_vocabulary()
    ids = [byte_ids[byte] for byte in word.encode("utf-8")]
    ids[-1] += _NUM_BYTES  # the last byte of a word has its own id
    while len(ids) > 1:
        # Ids are in the order of the table, so the smallest result is the earliest merge.
        known = [merges[pair] for pair in itertools.pairwise(ids) if pair in merges]
        if not known:
            break
        ids = _merge(ids, min(known), merges)
    return tuple(ids)


def _merge(ids: list[int], merged: int, merges: dict[tuple[int, int], int]) -> list[int]:
    """Replace every pair that becomes `merged`, from left to right."""
    result: list[int] = []
    position = 0
    while position < len(ids):
        if position + 1 < len(ids) and merges.get((ids[position], ids[position + 1])) == merged:
            result.append(merged)
            position += 2
        else:
            result.append(ids[position])
            position += 1
    return result


@functools.cache
def _load_vocabulary() -> tuple[dict[int, int], dict[tuple[int, int], int]]:
    """Return (byte -> id, pair of ids -> merged id), read from the vocabulary file at the first use."""
    # The file has one printable character for each byte: the printable bytes of Latin-1 as themselves (and first in the
    # order of ids), all others as the characters from U+0100 on.
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = sorted(set(range(_NUM_BYTES)) - set(printable))
    byte_ids = {byte: index for index, byte in enumerate(printable + others)}
    characters = [chr(byte) for byte in printable] + [chr(_NUM_BYTES + index) for index in range(len(others))]

    symbols = {character: index for index, character in enumerate(characters)}
    symbols |= {character + _END_OF_WORD: _NUM_BYTES + index for index, character in enumerate(characters)}
    merges: dict[tuple[int, int], int] = {}
    with gzip.open(_VOCABULARY_FILE, "rt", encoding="utf-8") as lines:
        # The first line is a header, and CLIP uses only the beginning of the table.
        for merged, line in enumerate(itertools.islice(lines, 1, 1 + START_TOKEN - _FIRST_MERGE), start=_FIRST_MERGE):
            left, right = line.split()
            merges[symbols[left], symbols[right]] = merged
            symbols[left + right] = merged
    if len(merges) != START_TOKEN - _FIRST_MERGE:
        raise ValueError(f"{_VOCABULARY_FILE}: {len(merges)} merges instead of {START_TOKEN - _FIRST_MERGE}")
    return byte_ids, merges


class Tokenizer(Protocol):
    """Texts to token ids, for one vocabulary.

    Attributes:
        name: of the vocabulary.
        has_start_token: whether a text's first token is a start token, so that its words begin at position 1.
    """

    name: str
    has_start_token: bool

    def encode(self, text: str) -> list[int]:
        """Return the token ids of one text, without start and end token."""

    def __call__(self, texts: Sequence[str], length: int) -> torch.Tensor:
        """Return the token ids of texts, padded: int64 (len(texts), length). No text is cut.

        Raises:
            ValueError: for a text that does not fit.
        """

    def count(self, text: str) -> int:
        """Return the number of tokens of a text, start and end token included."""


class ClipTokenizer:
    """OpenAI's byte-pair vocabulary."""

    name = "clip"
    has_start_token = True

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`."""
        return encode(text)

    def __call__(self, texts: Sequence[str], length: int) -> torch.Tensor:
        """See `Tokenizer.__call__`."""
        return tokenize(texts, length)

    def count(self, text: str) -> int:
        """See `Tokenizer.count`."""
        return count_tokens(text)


CLIP_TOKENIZER = ClipTokenizer()


class FileTokenizer:
    """A vocabulary from a `tokenizer.json`, such as SigLIP's; read by the library `tokenizers`.

    Texts are cleaned as in SigLIP's training: no punctuation and lower case ("canonicalize"), or lower case alone
    ("lower").

    Raises:
        ImportError: if `tokenizers` is not installed.
        ValueError: if the file cannot be read, or there is no padding token.
    """

    has_start_token = False

    def __init__(self, path: Path, clean: str = "canonicalize"):
        try:
            from tokenizers import Tokenizer as Vocabulary
        except ImportError as error:
            raise ImportError(f"{path}: needs the package tokenizers (pip install tokenizers)") from error
        try:
            vocabulary = Vocabulary.from_file(str(path))
            config = json.loads(path.with_name("tokenizer_config.json").read_text(encoding="utf-8"))
        except Exception as error:  # the library raises plain exceptions
            raise ValueError(f"{path}: cannot be read as a tokenizer ({error})") from error
        pad = config.get("pad_token")
        pad_id = vocabulary.token_to_id(pad["content"] if isinstance(pad, dict) else str(pad))
        if pad_id is None:
            raise ValueError(f"{path}: tokenizer_config.json has no padding token of the vocabulary")
        vocabulary.no_truncation()
        vocabulary.no_padding()
        self.name, self.path, self.clean = path.name, path, clean
        self.vocab_size = vocabulary.get_vocab_size()
        self.pad_id = pad_id
        self._vocabulary = vocabulary

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`."""
        return self._vocabulary.encode(self._clean(text), add_special_tokens=False).ids

    def __call__(self, texts: Sequence[str], length: int) -> torch.Tensor:
        """See `Tokenizer.__call__`."""
        tokens = torch.full((len(texts), length), self.pad_id, dtype=torch.long)
        for row, text in zip(tokens, texts, strict=True):
            ids = self._vocabulary.encode(self._clean(text)).ids
            if len(ids) > length:
                raise ValueError(f"text {text!r} has {len(ids)} tokens with its end, more than {length}")
            row[: len(ids)] = torch.tensor(ids)
        return tokens

    def count(self, text: str) -> int:
        """See `Tokenizer.count`."""
        return len(self._vocabulary.encode(self._clean(text)).ids)

    def _clean(self, text: str) -> str:
        text = html.unescape(html.unescape(ftfy.fix_text(text))).replace("_", " ")
        if self.clean == "canonicalize":
            text = text.translate(str.maketrans("", "", string.punctuation))
        return " ".join(text.lower().split())

    def __deepcopy__(self, memo: dict) -> "FileTokenizer":
        return self
