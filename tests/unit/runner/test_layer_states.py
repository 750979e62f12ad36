"""The states of recurrent layers by slot: a layer whose state is the sum of all that it has read."""

import random

import pytest
import torch

from langchain_specdec.runner.layer_states import TAIL, Row, RowStates, SlotStates


class Summing:
    """Adds up its inputs, and refuses those of rows of unequal width as a layer that knows no padding."""

    def __init__(self):
        self.widths = []
        self.fails = False

    def __call__(self, hidden, rows):
        if self.fails:
            raise RuntimeError("no memory")
        self.widths.append(tuple(hidden.shape[:2]))
        before = torch.zeros(len(hidden), 1, 1) if rows.recurrent is None else rows.recurrent
        sums = hidden.cumsum(1) + before
        rows.update_conv_state(hidden.transpose(1, 2), 0, conv_kernel_size=3)
        if rows.recurrent is None:
            rows.update_recurrent_state(sums[:, -1:], 0)
        else:
            # As kernels for one token do.
            rows.recurrent.copy_(sums[:, -1:])
        return sums


class Slots:
    """Texts in slots, and what each token is to give."""

    def __init__(self, num_layers=1):
        self.states = SlotStates()
        self.mixers = [Summing() for _ in range(num_layers)]
        self.texts = {}

    @property
    def widths(self):
        """Rows and width of each call of the layer since this was last asked."""
        widths, self.mixers[0].widths = self.mixers[0].widths, []
        return widths

    def forward(self, rows, prompts=()):
        """Run `{slot: (start, tokens)}`, and compare."""
        width = max(len(tokens) for _, tokens in rows.values())
        hidden = torch.full((len(rows), width, 1), 1e6)
        for row, (_, tokens) in enumerate(rows.values()):
            hidden[row, : len(tokens), 0] = torch.tensor(tokens, dtype=torch.float32)
        self.states.begin([Row(slot, start, len(tokens)) for slot, (start, tokens) in rows.items()])
        for layer, mixer in enumerate(self.mixers):
            output = self.states.run(layer, mixer, hidden)
            for row, (slot, (start, tokens)) in enumerate(rows.items()):
                text = [*self.texts.get(slot, [])[:start], *tokens]
                sums = torch.tensor(text, dtype=torch.float32).cumsum(0)[start:]
                assert output[row, : len(tokens), 0].tolist() == sums.tolist()
        for slot, (start, tokens) in rows.items():
            self.texts[slot] = [*self.texts.get(slot, [])[:start], *tokens]
        self.states.keep_prompts(prompts)


def test_a_text_goes_on_without_running_anything_again():
    slots = Slots()
    slots.forward({0: (0, [1, 2, 3])})
    slots.forward({0: (3, [4])})
    slots.forward({0: (4, [5, 6])})
    assert slots.widths == [(1, 3), (1, 1), (1, 2)]


def test_what_was_accepted_of_a_draft_is_run_again_and_no_more():
    slots = Slots()
    slots.forward({0: (0, [1, 2, 3])})
    slots.forward({0: (3, [4, 5, 6, 7])})
    assert slots.widths == [(1, 3), (1, 4)]
    slots.forward({0: (5, [8])})
    assert slots.widths == [(1, 2), (1, 1)]
    # From where the step before began: nothing to run again.
    slots.forward({0: (5, [9, 10])})
    assert slots.widths == [(1, 2)]


def test_rows_of_equal_width_run_together():
    slots = Slots()
    slots.forward({0: (0, [1, 2]), 2: (0, [3]), 1: (0, [4, 5])})
    assert sorted(slots.widths) == [(1, 1), (2, 2)]
    slots.forward({0: (2, [1, 2, 3]), 2: (1, [6, 7, 8]), 1: (2, [9, 9, 9])})
    assert slots.widths == [(3, 3)]
    slots.forward({0: (3, [1]), 2: (2, [2]), 1: (4, [3])})
    assert sorted(slots.widths) == [(1, 2), (2, 1), (3, 1)]
    # A first token has no state to go on from.
    slots.forward({0: (0, [5]), 1: (5, [6])})
    assert slots.widths == [(1, 1), (1, 1)]


def test_a_failed_forward_can_run_again():
    slots = Slots(num_layers=2)
    slots.forward({0: (0, [1, 2]), 1: (0, [3, 4])})
    slots.forward({0: (2, [5, 6, 7]), 1: (2, [8, 9])})
    slots.mixers[1].fails = True
    with pytest.raises(RuntimeError, match="no memory"):
        slots.forward({0: (3, [1, 1]), 1: (4, [2])})
    slots.mixers[1].fails = False
    slots.forward({1: (4, [2])})
    slots.forward({0: (3, [1, 1])})
    slots.forward({0: (5, [1]), 1: (5, [1])})


def test_a_failed_forward_over_a_long_part_of_a_prompt_can_run_again():
    slots = Slots(num_layers=2)
    slots.forward({0: (0, [1, 2]), 1: (0, [3, 4])}, prompts=[0, 1])
    # An answer, from which the next prompt goes on.
    slots.forward({0: (2, [5, 6, 7]), 1: (2, [8])})
    more = [1] * (TAIL + 9)
    slots.mixers[1].fails = True
    with pytest.raises(RuntimeError, match="no memory"):
        slots.forward({0: (4, more), 1: (3, more)}, prompts=[0, 1])
    slots.mixers[1].fails = False
    for slot, start in ((0, 4), (1, 3)):
        slots.forward({slot: (start, more)}, prompts=[slot])
    slots.forward({0: (4 + len(more), [2]), 1: (3 + len(more), [2])})


def test_texts_can_go_on_from_the_end_of_a_prompt_and_from_the_latest_tokens():
    slots = Slots()
    prompt = list(range(1, TAIL + 11))
    slots.forward({0: (0, prompt)}, prompts=[0])
    assert slots.widths == [(1, 10), (1, TAIL)]
    length = len(prompt)
    for _ in range(5):
        slots.forward({0: (len(slots.texts[0]), [1, 2])})
    stop = len(slots.texts[0])
    resumable = {n: slots.states.resumable(0, n) for n in (0, 9, 10, 40, length, length + 3, stop - 1, stop, stop + 5)}
    assert resumable == {
        0: 0, 9: 0, 10: 10, 40: 40, length: length, length + 3: length, stop - 1: stop - 1, stop: stop, stop + 5: stop,
    }  # fmt: skip
    assert slots.states.resumable(1, 40) == 0
    slots.forward({0: (40, [7, 8])})
    # Another text goes on there.
    assert [slots.states.resumable(0, n) for n in (9, 30, 41, 50, length)] == [0, 30, 41, 42, 42]
    with pytest.raises(RuntimeError, match=r"slot 0 holds no recurrent state .* at position 43"):
        slots.forward({0: (43, [1])})


def test_the_end_of_a_prompt_is_kept_whose_last_part_is_short():
    slots = Slots()
    slots.forward({0: (0, [1] * (TAIL + 30))}, prompts=[0])
    slots.forward({0: (TAIL + 30, [2, 3])}, prompts=[0])
    length = TAIL + 32
    for _ in range(3):
        slots.forward({0: (len(slots.texts[0]), [4, 5])})
    assert [slots.states.resumable(0, n) for n in (29, 30, 50, length, length + 1)] == [0, 30, 50, length, length]
    slots.forward({0: (50, [7])})
    # No more is kept than two parts, however many there are.
    for _ in range(5):
        slots.forward({0: (len(slots.texts[0]), [1] * (TAIL - 1))}, prompts=[0])
        assert slots.states.num_bytes <= 3 * 4 * (1 + 3) + 3 * TAIL * 4


def test_what_is_wiped_is_forgotten():
    slots = Slots(num_layers=2)
    slots.forward({0: (0, [1, 2, 3])}, prompts=[0])
    slots.forward({0: (3, [4, 5, 6])})
    slots.states.wipe(0, 5)
    assert slots.states.resumable(0, 6) == 5
    slots.forward({0: (5, [7])})
    slots.states.wipe(0, 2)
    assert slots.states.resumable(0, 6) == 2
    slots.states.wipe(0)
    assert slots.states.resumable(0, 6) == 0
    assert slots.states.num_bytes == 0


def test_three_snapshots_are_kept_at_most():
    slots = Slots()
    snapshot, token = 4 * (1 + 3), 4
    slots.forward({0: (0, [1] * (TAIL + 1))}, prompts=[0])
    assert slots.states.num_bytes == 2 * snapshot + TAIL * token
    for _ in range(3):
        slots.forward({0: (len(slots.texts[0]), [1, 2])})
    assert slots.states.num_bytes == 3 * snapshot + TAIL * token + 2 * token


def test_many_slots_and_rollbacks():
    rng = random.Random(0)
    slots = Slots(num_layers=2)
    for _ in range(200):
        rows = {}
        for slot in rng.sample(range(4), rng.randint(1, 4)):
            text = slots.texts.get(slot, [])
            start = slots.states.resumable(slot, rng.randint(0, len(text)))
            rows[slot] = (start, [rng.randrange(9) for _ in range(rng.choice([1, 1, 2, 5, 70]))])
        slots.forward(rows, prompts=[slot for slot in rows if rng.random() < 0.2])


def test_the_first_inputs_of_a_convolution_are_padded_in_front():
    rows = RowStates()
    seen = rows.update_conv_state(torch.tensor([[[5.0, 6.0]]]), 0, conv_kernel_size=4)
    assert seen.tolist() == [[[0, 0, 5, 6]]]
    seen = rows.update_conv_state(torch.tensor([[[7.0]]]), 0, conv_kernel_size=4)
    assert seen.tolist() == [[[0, 0, 5, 6, 7]]]
    assert rows.conv is not None
    assert rows.conv.tolist() == [[[0, 5, 6, 7]]]
