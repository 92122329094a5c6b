"""Texts as rows: laid out, spread to whole texts and gathered again."""

import pytest
import torch

from tc_clip.text_rows import TextRows

END = 99
TEXTS = {
    "different lengths": ["1 2 3 4 99", "1 2 3 99", "1 2 3 5 6 7 99", "1 2 3 4 8 99"],
    "one text": ["1 2 3 99"],
    "twice the same": ["1 2 3 99", "1 2 3 99"],
    "one is a prefix of the other": ["1 2 99", "1 2 3 4 99"],
    "nothing but the start": ["1 5 99", "1 6 7 99"],
    "nothing in common": ["5 99", "6 7 99"],
}


def tokens_of(name: str, padding: int = 2) -> torch.Tensor:
    texts = [[int(token) for token in text.split()] for text in TEXTS[name]]
    length = max(map(len, texts)) + padding
    return torch.tensor([text + [0] * (length - len(text)) for text in texts])


def texts_of(rows: TextRows, x: torch.Tensor) -> list[list[int]]:
    """Return the texts up to their ends, from one number per row."""
    spread = rows.spread(x.unsqueeze(-1)).squeeze(-1)
    return [text[: end + 1] for text, end in zip(spread.tolist(), rows.positions[rows.ends].tolist(), strict=True)]


@pytest.mark.parametrize("name", TEXTS)
def test_rows_hold_every_position_once(name):
    tokens = tokens_of(name)
    rows = TextRows.of(tokens)
    written = [[int(token) for token in text.split()] for text in TEXTS[name]]
    assert texts_of(rows, rows.tokens) == written
    assert texts_of(rows, rows.positions) == [list(range(len(text))) for text in written]
    assert rows.tokens[rows.ends].tolist() == [END] * len(written)
    assert len(rows.tokens) == rows.num_shared + sum(len(text) - rows.num_shared for text in written)
    assert len({(text[: rows.num_shared]) for text in map(tuple, written)}) == 1
    assert rows.length == max(map(len, written)) and rows.num_texts == len(written)
    assert rows.visible.sum(dim=1).tolist() == [len(text) for text in written]
    x = torch.randn(2, len(rows.tokens), 3)
    assert torch.equal(rows.gather(rows.spread(x)), x)


@pytest.mark.parametrize("name", TEXTS)
def test_a_part_has_the_rows_of_its_texts(name):
    rows = TextRows.of(tokens_of(name))
    numbers = torch.arange(len(rows.tokens))
    whole = texts_of(rows, numbers)
    for first in range(rows.num_texts):
        for stop in range(first + 1, rows.num_texts + 1):
            part = rows.part(first, stop)
            x = rows.rows_of(numbers.unsqueeze(-1), first, stop)
            assert texts_of(part, x.squeeze(-1)) == whole[first:stop]
            assert texts_of(part, part.tokens) == texts_of(rows, rows.tokens)[first:stop]
            assert torch.equal(part.gather(part.spread(x)), x)
            last = part.part(part.num_texts - 1, part.num_texts)
            assert texts_of(last, last.tokens) == texts_of(part, part.tokens)[-1:]


@pytest.mark.parametrize("num_shared", [0, 1])
def test_padded_texts_are_equal(num_shared):
    tokens = tokens_of("different lengths")
    rows = TextRows.padded(tokens, num_shared)
    assert torch.equal(rows.spread(rows.tokens.unsqueeze(-1)).squeeze(-1), tokens)
    assert rows.tokens[rows.ends].tolist() == [END] * 4
    assert texts_of(rows, rows.tokens) == texts_of(TextRows.of(tokens), TextRows.of(tokens).tokens)
    assert texts_of(rows.part(1, 3), rows.part(1, 3).tokens) == texts_of(rows, rows.tokens)[1:3]


def test_positions_after_an_end_get_no_gradient():
    """They repeat their end's row, which must not get their gradients: else a sum would depend on an order."""
    rows = TextRows.of(tokens_of("different lengths"))
    x = torch.randn(len(rows.tokens), 12, dtype=torch.float64)
    written = rows.spread(x).requires_grad_()
    queries, keys, values = written.unsqueeze(1).split(4, dim=-1)
    attended = torch.nn.functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
    rows.gather(attended.squeeze(1)).square().sum().backward()
    assert (written.grad[~rows.visible] == 0).all() and (written.grad[rows.visible] != 0).any()
