"""The weighted sum: its terms, their ages, their helpers and words."""

import torch
from torch import nn

from losses import Loss, Target, Term, WeightedSum


class Scaled(Loss):
    """factor * mean(sr); with a helper, that learns factor * its parameter."""

    def __init__(self, factor, helper=None, word=None):
        super().__init__(helper)
        self.factor, self.word, self.begun = factor, word, []

    def begin_epoch(self, net, epoch):
        self.begun.append((net, epoch))

    def begin_step(self, step):
        self.begun.append(step)

    def helper_loss(self, sr, target, epoch):
        return None if self.helper is None else self.factor * self.helper.weight.sum()

    def forward(self, sr, target, epoch, features=None):
        return self.factor * sr.mean() + (0 if features is None else features)

    def log_scalars(self, helper_loss, epoch):
        return {} if self.word is None else {self.word: (helper_loss, epoch)}


SR, TARGET = torch.full((1, 3, 2, 2), 2.0), Target(torch.zeros(1, 3, 2, 2))


def test_the_sum_and_its_ages():
    loss = WeightedSum(Term(Scaled(1), 10.0), Term(Scaled(2), 100.0, start_epoch=1.5), Term(Scaled(3), start_epoch=2))
    assert [loss(SR, TARGET, epoch).item() for epoch in (0, 1.4, 1.5, 1.99, 2.0)] == [20, 20, 420, 420, 426]
    assert loss(SR, TARGET, 0, torch.tensor(0.5)) == 10 * 2.5  # features reach the terms
    sr = SR.clone().requires_grad_()
    loss(sr, TARGET, 2).backward()
    torch.testing.assert_close(sr.grad, torch.full_like(SR, (10 + 200 + 3) / 12))


def test_the_helpers_learn_together_each_on_its_own_loss_whatever_its_terms_weight():
    a, b = nn.Linear(1, 1), nn.Linear(1, 1)
    loss = WeightedSum(Term(Scaled(1), 7.0), Term(Scaled(2, a), 0.01), Term(Scaled(3, b), 0.01, start_epoch=1))
    assert list(loss.helper) == [a, b] and loss.joint_parameters() == []
    assert {id(p) for p in loss.helper.parameters()} == {id(p) for p in loss.parameters()}
    loss.helper_loss(SR, TARGET, 0).backward()
    assert a.weight.grad == 2 and b.weight.grad is None
    a.weight.grad = None
    loss.helper_loss(SR, TARGET, 1).backward()
    assert a.weight.grad == 2 and b.weight.grad == 3


def test_without_a_helper():
    loss = WeightedSum(Term(Scaled(1)), Term(Scaled(2)))
    assert loss.helper is None and loss.helper_loss(SR, TARGET, 0) is None and loss.weighting is None
    waiting = WeightedSum(Term(Scaled(1)), Term(Scaled(2, nn.Linear(1, 1)), start_epoch=3))
    assert waiting.helper is not None and waiting.helper_loss(SR, TARGET, 2) is None


def test_parameters_beside_the_helpers_are_joint():
    term = Scaled(1)
    term.head = nn.Linear(2, 2)
    loss = WeightedSum(Term(term), Term(Scaled(2, nn.Linear(1, 1))))
    assert [id(p) for p in loss.joint_parameters()] == [id(p) for p in term.head.parameters()]


def test_every_term_hears_of_the_epoch():
    loss = WeightedSum(Term(Scaled(1)), Term(Scaled(2), start_epoch=9))
    loss.begin_epoch("net", 4)
    loss.begin_step(7)
    assert [inner.begun for inner in loss.losses] == [[("net", 4), 7]] * 2


def test_words():
    one = WeightedSum(
        Term(Scaled(1, word="x")), Term(Scaled(2, nn.Linear(1, 1), "y")), Term(Scaled(3, word="z"), start_epoch=2)
    )
    assert one.log_scalars(0.5, 1) == {"x": (0.5, 1), "y": (0.5, 1)} and set(one.log_scalars(0.5, 2)) == {"x", "y", "z"}
    two = WeightedSum(Term(Scaled(1, nn.Linear(1, 1), "x")), Term(Scaled(2, nn.Linear(1, 1), "y")))
    assert two.log_scalars(0.5, 1) == {"x": (None, 1), "y": (None, 1)}


def test_the_state_comes_back():
    def build():
        return WeightedSum(Term(Scaled(1, nn.Linear(1, 1))), Term(Scaled(2, nn.Linear(1, 1))))

    one, other = build(), build()
    other.load_state_dict(one.state_dict())
    for a, b in zip(one.losses, other.losses):
        assert torch.equal(a.helper.weight, b.helper.weight)
