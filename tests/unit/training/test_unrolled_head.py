"""Training drafts just what drafting drafts: the unrolled head against chains that are drafted one by one."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from langchain_specdec.errors import UnsupportedModelError
from langchain_specdec.models.heads.eagle3_config import Eagle3Config
from langchain_specdec.models.heads.eagle3_head import Eagle3Head
from langchain_specdec.training.answers import Text
from langchain_specdec.training.draft_vocabulary import draft_token_ids, share_covered
from langchain_specdec.training.output_head import OutputHead
from langchain_specdec.training.plain_weights import linear_rows
from langchain_specdec.training.text_batches import TextBatches
from langchain_specdec.training.unrolled_head import UnrolledHead

HIDDEN, VOCAB, STEPS = 16, 20, 3
IDS = torch.tensor([0, 2, 3, 5, 7, 8, 11, 13, 17, 19])


def make_head(num_layers: int = 1) -> Eagle3Head:
    torch.manual_seed(0)
    config = Eagle3Config((0, 1, 2), HIDDEN, HIDDEN, HIDDEN, 24, 4, 2, 4, VOCAB, len(IDS), num_layers=num_layers)
    head = Eagle3Head(config, IDS, embedding=nn.Embedding(VOCAB, HIDDEN).requires_grad_(requires_grad=False))
    for parameter in head.parameters():
        parameter.data.mul_(2.0)
    return head


def make_texts() -> tuple[list[Text], dict[int, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    texts = [
        Text(tuple(torch.randint(VOCAB, (length,), generator=generator).tolist()), prompt)
        for length, prompt in ((9, 3), (12, 5), (7, 1))
    ]
    # The draft cannot propose 1, so that a place of the answer has no loss.
    texts[1] = Text((*texts[1].tokens[:8], 1, *texts[1].tokens[9:]), 5)
    return texts, {n: torch.randn(len(t.tokens), 4, HIDDEN, generator=generator) for n, t in enumerate(texts)}


def drafted(head: Eagle3Head, text: Text, states: torch.Tensor, base: int, steps: int) -> list[torch.Tensor]:
    """The scores of a chain that is drafted after `base + 2` tokens of a text, fed with the text's own tokens."""

    def attend(layer, query, key, value):
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)

    hidden = head.condense(states[None, : base + 1, :-1])
    scores = []
    for step in range(steps):
        count = base + 1 + step
        tokens = torch.tensor([text.tokens[1 : count + 1]])
        outputs, following = head(head.embed(tokens), hidden, torch.arange(count)[None], attend)
        scores.append(head.logits(outputs)[0, -1])
        hidden = torch.cat([hidden, following[:, -1:]], 1)
    return scores


@pytest.mark.parametrize("num_layers", [1, 2])
def test_each_step_is_that_of_a_chain_that_is_drafted(num_layers):
    head, output = make_head(num_layers), OutputHead(torch.randn(len(IDS), HIDDEN))
    texts, states = make_texts()
    divergences: list[list[torch.Tensor]] = [[] for _ in range(STEPS)]
    for number, text in enumerate(texts):
        for base in range(len(text.tokens) - 2):
            chain = drafted(head, text, states[number], base, min(STEPS, len(text.tokens) - 2 - base))
            for step, scores in enumerate(chain):
                place = base + 1 + step
                token = text.tokens[place + 1]
                if place + 1 < text.num_prompt_tokens:
                    continue
                if token not in IDS.tolist():
                    continue
                target = output(states[number][place, -1]).log_softmax(-1)
                divergences[step].append(F.kl_div(scores.log_softmax(-1), target, log_target=True, reduction="sum"))
    batches = TextBatches(texts, range(3), states, batch_tokens=1000)
    assert len(batches) == 1
    found = UnrolledHead(head, output, STEPS).eval().divergences(**batches[0])
    for divergence, expected in zip(found, divergences, strict=True):
        torch.testing.assert_close(divergence, torch.stack(expected).mean(), rtol=1e-4, atol=1e-5)


def test_a_head_that_learned_from_scaled_states_takes_them_as_they_are():
    scale = torch.rand(3, HIDDEN) * 9 + 1
    output = OutputHead(torch.randn(len(IDS), HIDDEN))
    texts, states = make_texts()
    batch = TextBatches(texts, range(3), states, batch_tokens=1000)[0]
    model = UnrolledHead(make_head(), output, STEPS, scale).eval()
    expected = model.divergences(**batch)
    assert UnrolledHead(make_head(), output, STEPS).eval().divergences(**batch)[0] != expected[0]
    finished = UnrolledHead(model.finish(), output, STEPS).eval().divergences(**batch)
    torch.testing.assert_close(finished, expected)
    torch.testing.assert_close(model.divergences(**batch), expected)


def test_training_brings_the_head_closer_to_the_target_at_every_place():
    head, output = make_head(), OutputHead(torch.randn(len(IDS), HIDDEN))
    texts, states = make_texts()
    model = UnrolledHead(head, output, STEPS)
    batch = TextBatches(texts, range(3), states, batch_tokens=1000)[0]
    # What the target would write, so that its best tokens are the text's.
    targets = IDS[output(batch["states"][:, :, -1]).argmax(-1)]
    batch["tokens"][:, 1:] = targets[:, :-1]
    before = model.eval().divergences(**batch)
    model.train()
    optimizer = torch.optim.AdamW([p for p in head.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(100):
        loss = model(**batch)["loss"]
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = model.eval().divergences(**batch)
    assert losses[-1] < 0.3 * losses[0]
    assert all(a < 0.5 * b for a, b in zip(after, before, strict=True))


def test_what_is_saved_is_the_head_alone():
    model = UnrolledHead(make_head(), OutputHead(torch.randn(len(IDS), HIDDEN)), STEPS)
    assert set(model.state_dict()) == {f"head.{name}" for name in model.head.state_dict()}
    assert not any("embed" in name for name in model.state_dict())


def test_batches_are_whole_texts_of_about_one_length():
    texts = [Text((0,) * length, 1) for length in (5, 30, 6, 4, 12)]
    states = {number: torch.zeros(len(text.tokens), 2, 3) for number, text in enumerate(texts)}
    batches = TextBatches(texts, [0, 1, 2, 3, 4], states, batch_tokens=20)
    assert [tuple(batches[n]["tokens"].shape) for n in range(len(batches))] == [(1, 30), (1, 12), (3, 6)]
    # Of 6 tokens with a prompt of 1, 5 are answered: those after places 0 to 4.
    assert batches[2]["is_answered"].sum(1).tolist() == [5, 4, 3]


def test_the_vocabulary_is_what_the_answers_are_made_of():
    texts = [Text((9, 9, 4, 4, 5), 2), Text((8, 4, 6, 5), 1)]
    assert draft_token_ids(texts, 12, None, [11]).tolist() == [4, 5, 6, 11]
    assert draft_token_ids(texts, 12, 3, [11]).tolist() == [4, 5, 11]
    assert draft_token_ids(texts, 12, 6, [11]).tolist() == [4, 5, 6, 8, 9, 11]
    assert draft_token_ids(texts, 12, 100, [11]).tolist() == list(range(12))
    assert share_covered(texts, torch.tensor([4, 5])) == 5 / 6


class Hidden(nn.Module):
    """A linear layer that shows its weight by its outputs alone, as packed ones do."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self._linear = [linear]

    def forward(self, inputs):
        return self._linear[0](inputs)


def test_rows_of_an_output_layer_however_it_keeps_them():
    linear = nn.Linear(HIDDEN, VOCAB)
    for layer in (linear, Hidden(linear)):
        rows, bias = linear_rows(layer, IDS, torch.float32)
        torch.testing.assert_close(rows, linear.weight[IDS])
        torch.testing.assert_close(bias, linear.bias[IDS])


def test_an_output_head_that_computes_something_else_is_refused():
    state, output = torch.randn(HIDDEN), OutputHead(torch.randn(len(IDS), HIDDEN))
    # A number that is added to all changes no distribution.
    output.check(state, output(state) + 3, "it")
    with pytest.raises(UnsupportedModelError, match="computes more than a product with its weights"):
        output.check(state, output(state).tanh() * 2, "it")
