"""How unsure a model is of its answers, from logits alone: the objective of AdaMerging (arXiv:2310.02575, equation 3).

The paper's models have a class head. A language model has no such head, so there are three readings of "the
distribution over answers": over the options of a row, over the whole vocabulary at the first answer position, and over
the vocabulary along a given answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Reading:
    """What a model says to some prompts of one task.

    ``entropy`` (prompts,) in nats, or as a share of its maximum; ``log_mass`` (prompts,): log of the probability that
    the answer begins with one of the options, None without options; ``probabilities`` (prompts, answers).
    """

    entropy: Tensor
    log_mass: Tensor | None
    probabilities: Tensor


@dataclass(frozen=True)
class OptionTable:
    """Where the tokens of the options stand. The first three are (prompts, options, tokens), the others (prompts,
    options).

    ``place``: row of the logits that predict the token; ``counted``: whether the token is there; ``exists``: whether
    the option is; ``opens``: whether no other option is its beginning, so that masses may be added.
    """

    place: Tensor
    token: Tensor
    counted: Tensor
    exists: Tensor
    opens: Tensor


def entropy(logits: Tensor) -> Tensor:
    """``-sum p log p`` in nats over the last dimension, in float32; logits of minus infinity count as absent."""
    logits = logits.float()
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p.masked_fill(logits.isneginf(), 0.0)).sum(-1)


def read_options(logits: Tensor, table: OptionTable, normalise: bool = False) -> Reading:
    """Distribution over the options of each prompt: ``softmax`` of their log-likelihoods.

    ``logits`` is (positions, vocabulary). Likelihoods are divided by the number of tokens only where the options of a
    prompt differ in it. ``normalise``: entropy divided by the log of the number of options.
    """
    logits = logits.float()
    log_p = logits[table.place, table.token] - logits.logsumexp(-1)[table.place]
    sums = (log_p * table.counted).sum(-1)
    lengths = table.counted.sum(-1)
    shortest = lengths.masked_fill(~table.exists, lengths.max()).amin(-1, keepdim=True)
    uneven = lengths.amax(-1, keepdim=True) > shortest
    scores = torch.where(uneven, sums / lengths.clamp(min=1), sums).masked_fill(~table.exists, -torch.inf)
    found = entropy(scores)
    if normalise:
        found = found / table.exists.sum(-1).clamp(min=2).log()
    mass = sums.masked_fill(~(table.exists & table.opens), -torch.inf).logsumexp(-1)
    return Reading(found, mass, scores.softmax(-1))


def read_first_token(logits: Tensor, table: OptionTable | None, normalise: bool = False) -> Reading:
    """Distribution over the whole vocabulary at the first answer position; ``logits`` is (prompts, vocabulary).

    The mass is that of the options' first tokens: an upper bound of that of the options.
    """
    logits = logits.float()
    found = entropy(logits)
    if normalise:
        found = found / torch.tensor(float(logits.shape[-1])).log()
    mass = None
    if table is not None:
        first = table.token[..., 0]
        again = (first[:, :, None] == first[:, None, :]).tril(-1).any(-1)
        mass = logits.log_softmax(-1).gather(-1, first).masked_fill(~table.exists | again, -torch.inf).logsumexp(-1)
    return Reading(found, mass, logits.softmax(-1))


def read_sequence(logits: Tensor, owner: Tensor, first: Tensor, normalise: bool = False) -> Reading:
    """Distributions over the vocabulary along given answers, whose entropies are averaged for each prompt.

    ``logits`` is (positions, vocabulary); ``owner`` (positions,): the prompt; ``first`` (prompts,): its first position.
    """
    logits = logits.float()
    each = entropy(logits)
    member = (owner == torch.arange(len(first), device=owner.device)[:, None]).float()
    found = (member @ each) / member.sum(-1)
    if normalise:
        found = found / torch.tensor(float(logits.shape[-1])).log()
    return Reading(found, None, logits[first].softmax(-1))
