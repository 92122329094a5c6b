"""Merge schedule, matching and averaging against small cases computed by hand."""

import pytest
import torch

from tc_clip.ops import average_tokens, match_tokens
from tc_clip.ops.merging import merge_schedule


def test_published_schedule():
    assert merge_schedule(16 * 58, 96, 100) == (100,) * 8 + (32,)


@pytest.mark.parametrize(
    ("num_tokens", "num_kept", "merge_rate", "expected"),
    [
        (96, 96, 100, ()),
        (50, 96, 100, ()),
        (97, 96, 100, (1,)),
        (296, 96, 100, (100, 98, 2)),  # the second full round can merge only half of 196
        (10, 1, 100, (5, 2, 1, 1)),
        (464, 64, 40, (40,) * 10),
        (7, 2, 2, (2, 2, 1)),
    ],
)
def test_schedule(num_tokens, num_kept, merge_rate, expected):
    schedule = merge_schedule(num_tokens, num_kept, merge_rate)
    assert schedule == expected
    assert num_tokens - sum(schedule) == min(num_tokens, num_kept)


def test_one_round_by_hand():
    # Even tokens 0, 2, 4 look for odd partners 1, 3. Token 2 is token 3's twin, token 4 is near token 1, token 0 is not
    # like any. Merging two: first the pairs (2, 3) and (4, 1); token 0 stays and comes first.
    tokens = torch.tensor([[[-1.0, -1.0], [1.0, 0.0], [0.0, 2.0], [0.0, 5.0], [3.0, 0.3]]], dtype=torch.float64)
    assignment = match_tokens(tokens, (2,))
    assert assignment.tolist() == [[0, 1, 2, 2, 1]]
    expected = [[[-1.0, -1.0], [2.0, 0.15], [0.0, 3.5]]]
    torch.testing.assert_close(average_tokens(tokens, assignment, 3), torch.tensor(expected, dtype=torch.float64))


def test_staying_even_tokens_come_in_descending_order_of_likeness():
    angles = torch.tensor([1.2, 0.0, 0.3, 0.0, 0.9, 0.0, 0.6, 0.0], dtype=torch.float64)
    tokens = torch.stack((angles.cos(), angles.sin()), dim=-1)[None]
    # Even tokens 2, 6, 4, 0 by likeness to the odd ones; one is merged, three stay in that order, then the odd ones.
    assignment = match_tokens(tokens, (1,))[0]
    assert assignment[[6, 4, 0]].tolist() == [0, 1, 2]
    assert assignment[[1, 3, 5, 7]].tolist() == [3, 4, 5, 6]
    assert assignment[2].item() in (3, 4, 5, 6)


def test_every_group_has_a_member_and_batches_do_not_mix():
    torch.manual_seed(0)
    tokens = torch.randn(3, 41, 8, dtype=torch.float64)
    schedule = merge_schedule(41, 5, 7)
    assignment = match_tokens(tokens, schedule)
    for b in range(3):
        assert sorted(set(assignment[b].tolist())) == list(range(5))
        assert torch.equal(assignment[b : b + 1], match_tokens(tokens[b : b + 1], schedule))


def test_gradient_reaches_every_member_and_matching_has_none():
    torch.manual_seed(0)
    tokens = torch.randn(1, 12, 4, dtype=torch.float64, requires_grad=True)
    assignment = match_tokens(tokens, (4, 3))
    assert not assignment.requires_grad
    average_tokens(tokens, assignment, 5).sum().backward()
    sizes = torch.bincount(assignment[0], minlength=5)
    torch.testing.assert_close(tokens.grad[0, :, 0], 1 / sizes[assignment[0]].double())
