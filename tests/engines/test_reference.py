"""The loop that everything else is measured against, held to sums that can be done by hand."""

from __future__ import annotations

import pytest
import torch

import cello
from cello.engines import Direction, Scan, Sequence
from cello.engines.reference import Reference


class Sum(cello.Cell):
    """h' = 10 h + x: the digits of h are the inputs in the order in which they were read."""

    state_sizes = {"h": 1}  # noqa: RUF012

    def forward(self, x, state):
        (h,) = state
        h = 10 * h + x
        return 2 * h, (h,)


SIZES = (3, 2, 2, 1)  # sequences of 4, 3 and 1 steps
ROWS = torch.tensor([1, 5, 9, 2, 6, 3, 7, 4.0])[:, None]  # 1234, 567, 9


def run(cell=None, *, reverse=False, keep=False, state=None):
    start = (torch.zeros(3, 1) if state is None else state,)
    directions = (Direction(cell or Sum(), start, reverse),)
    (result,) = Reference().run(Scan(Sequence(ROWS, SIZES), directions, keep))
    return result


def test_every_sequence_ends_at_its_own_last_step():
    result = run(keep=True)
    assert result.state[0].flatten().tolist() == [1234, 567, 9]
    assert result.states[0].flatten().tolist() == [1, 5, 9, 12, 56, 123, 567, 1234]
    assert torch.equal(result.output, 2 * result.states[0])


def test_in_reverse_every_sequence_starts_at_its_own_last_step():
    result = run(reverse=True, keep=True)
    assert result.state[0].flatten().tolist() == [4321, 765, 9]
    assert result.states[0].flatten().tolist() == [4321, 765, 9, 432, 76, 43, 7, 4]


def test_the_initial_state_and_what_is_not_kept():
    result = run(state=torch.tensor([[1.0], [0.0], [2.0]]))
    assert result.state[0].flatten().tolist() == [11234, 567, 29]
    assert result.states == ()
    assert Reference().why_not(Scan(Sequence(ROWS, SIZES), ())) == []


class Breaks(cello.Cell):
    state_sizes = {"h": 1, "n": 1}  # noqa: RUF012

    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x, state):
        h, n = state
        broken = {
            "output rows": (h[:1], (h, n)),
            "output kind": (None, (h, n)),
            "state rows": (h, (h, n[:1])),
            "state shape": (h, (h, n.expand(-1, 2))),
            "parts": (h, (h,)),
        }
        return broken[self.how]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("output rows", r"returned the output as a tensor \(1, 1\), expected 3 rows"),
        ("output kind", "returned the output as None, expected 3 rows"),
        ("state rows", r"returned the state 'n' as a tensor \(1, 1\), expected 3 rows"),
        (
            "state shape",
            r"Breaks changed the shape of the state 'n' from \(3, 1\) to \(3, 2\)",
        ),
        ("parts", "returned a state of 1 parts, expected 2: h, n"),
    ],
)
def test_a_step_that_breaks_the_rules_is_named(how, message):
    start = (torch.zeros(3, 1), torch.zeros(3, 1))
    scan = Scan(Sequence(ROWS, SIZES), (Direction(Breaks(how), start),))
    with pytest.raises(cello.CellError, match=message):
        Reference().run(scan)


def test_a_first_state_of_the_cells_own_is_checked_too():
    class Own(cello.Cell):
        state_sizes = {"h": 1}  # noqa: RUF012

        def forward(self, x, state):
            return x, (torch.zeros(1, 1),)

    scan = Scan(Sequence(ROWS, SIZES), (Direction(Own(), None),))
    with pytest.raises(cello.CellError, match="returned the state 'h'"):
        Reference().run(scan)
