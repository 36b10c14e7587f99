"""The second phase of LARES: rollouts of the same history, and which of them are made likelier (arXiv 2505.16865)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from forethought.nn.dropout import Dropout
from forethought.nn.encoder import like_lengths, newest_position
from forethought.nn.reasoning import Recurred


def advantages(reward: Tensor) -> Tensor:
    """How much better each rollout is than its group, in deviations of the group; float ``[G, B]`` → ``[G, B]``."""
    return (reward - reward.mean(dim=0)) / (reward.std(dim=0) + 1e-4)


def divergence(log_p: Tensor, reference: Tensor) -> Tensor:
    """``exp(r - l) - (r - l) - 1``, at least 0 and 0 where both agree; of log-probabilities of any one shape.

    Beyond r - l = 20 it goes on as a straight line: from 88 on the exponential is no float32.
    """
    change = reference - log_p
    near = change.clamp(max=20)
    return near.expm1() + near.exp() * (change - near) - change


def hits(logits: Tensor, target: Tensor, k: int) -> Tensor:
    """Whether fewer than k items score above the target; float ``[..., N]``, int64 ``[B]`` from 0 → bool ``[...]``."""
    own = logits.gather(-1, target.expand(logits.shape[:-1])[..., None])
    return (logits > own).sum(dim=-1) < k


@dataclass(frozen=True)
class Rollouts:
    """G thoughts about each of B histories.

    Attributes:
        log_p: float ``[G, B]``, of the target after the last step.
        score: float ``[G, B]``, ``Σ z · f / σ`` over the drawn states, a mean over their elements; its gradient is that
            of the log-probability of the thought, up to the count of elements.
        logits: float ``[G, B, N]``, after the last step, without gradient.
    """

    log_p: Tensor
    score: Tensor
    logits: Tensor


def roll_out(model: Any, history: Tensor, target: Tensor, noise: list[Tensor], deviation: float) -> Rollouts:
    """Thoughts whose tokens after step t are the core's plus ``deviation * noise[t]``.

    What a step goes on from is a draw, without gradient; the gradient into the core is that of the draw's probability,
    ``ln N(f + σ z; f, σ²)``, which is ``z · df / σ``.

    Args:
        model: a LARES.
        history: int64 ``[B, L]``.
        target: int64 ``[B]``, from 0.
        noise: of each step, float ``[G, B, L, d]``; rollouts whose noise is 0 are the model's own thought.
        deviation: σ.
    """
    group, rows = noise[0].shape[:2]
    encoder, position = model.encoder, newest_position(history)
    state: Recurred = encoder.encode(model.embedding(history), position[:, None])
    state = state.select(torch.arange(rows, device=history.device).repeat(group))
    position = position.repeat(group)
    real = (torch.arange(history.shape[1], device=history.device) <= position[:, None])[..., None]
    chain, score = [state.latest[:, 0]], torch.zeros(group * rows, device=history.device)
    for drawn in noise:
        z = drawn.flatten(0, 1) * real
        mean = encoder.step(state)
        score = score + (z * mean.tokens).sum(dim=(1, 2)) / (
            deviation * len(noise) * real.sum(dim=(1, 2)) * z.shape[-1]
        )
        chain.append(encoder.read_out(mean.tokens + deviation * z, position[:, None])[:, 0])
        state = replace(mean, tokens=(mean.tokens + deviation * z).detach())
    logits = model.logits(model.read_out(torch.stack(chain, dim=1)))
    log_p = logits.log_softmax(dim=-1).gather(1, target.repeat(group)[:, None])
    return Rollouts(log_p.view(group, rows), score.view(group, rows), logits.detach().view(group, rows, -1))


def thought_loss(model: Any, reference: Any, history: Tensor, target: Tensor, depth: int) -> Tensor:
    """Raise the probability of the thoughts that led closer to the target than others of their group; a scalar.

    The reward is the target's log-probability, so no group is without an advantage; the first rollout has no noise; the
    reference thinks under the same noise, so the divergence measures the weights alone and is 0 before the first
    update.
    """
    config, position = model.config, newest_position(history)
    rows, each, logits = like_lengths(position), [], []
    training, modules = model.encoder.training, (model.encoder, model.embedding)
    for module in modules:
        module.eval()  # the noise is what varies, not the dropout
    try:
        for part in rows:
            short = history[part, : int(position[part[-1]]) + 1]
            shape = (config.post_rollouts, *short.shape, config.hidden_size)
            noise = [torch.randn(shape, device=history.device) for _ in range(depth)]
            for drawn in noise:
                drawn[0] = 0
            with torch.no_grad():
                before = roll_out(reference, short, target[part], noise, config.post_noise)
            now = roll_out(model, short, target[part], noise, config.post_noise)
            pull = divergence(now.log_p, before.log_p)
            each.append(config.post_beta * pull - advantages(now.log_p.detach()) * now.score)
            logits.append(before.logits)
    finally:
        for module in modules:
            module.train(training)
    return _mean(torch.cat(each, dim=1), torch.cat(logits, dim=1), target[torch.cat(rows)], config)


def released_loss(model: Any, reference: Any, history: Tensor, target: Tensor) -> Tensor:
    """The objective as released: each rollout has a depth, noise and dropout mask of its own, the reference others; the
    reward is a hit in the top k, and what the advantage weighs is the target's probability after every step."""
    config, position = model.config, newest_position(history)
    rewards, each, logits = [], [], []
    for _ in range(config.post_rollouts):
        depth = model.training_steps()
        steps = {}
        for name, thinker in (("now", model), ("before", reference)):
            with torch.set_grad_enabled(name == "now"):
                states = thinker.states(history, position[:, None], depth)[:, 0]
                read = [thinker.read_out(states[:, : step + 2]) for step in range(depth)]
                scores = thinker.logits(torch.stack(read, dim=1))
                chosen = target[:, None, None].expand(-1, depth, 1)
                steps[name] = scores.log_softmax(dim=-1).gather(2, chosen)[..., 0]
            if name == "now":
                rewards.append(hits(scores[:, -1].detach(), target, config.post_k).float())
            else:
                logits.append(scores[:, -1])
        each.append(steps)
    loss = []
    for better, steps in zip(advantages(torch.stack(rewards)), each, strict=True):
        ratio = (steps["now"] - steps["now"].detach()).exp()
        pull = divergence(steps["now"], steps["before"])
        loss.append((config.post_beta * pull - ratio * better[:, None]).mean(dim=1))
    return _mean(torch.stack(loss), torch.stack(logits), target, config)


def _mean(loss: Tensor, before: Tensor, target: Tensor, config: Any) -> Tensor:
    """Of the rows, float ``[G, B]``, whose target the reference finds at least once; it scores ``before`` [G, B, N]."""
    if not config.post_candidates:
        return loss.mean()
    kept = hits(before, target, config.post_candidates).any(dim=0).to(loss.dtype)
    return (loss.mean(dim=0) * kept).sum() / kept.sum().clamp(min=1)


def set_dropout(encoder: torch.nn.Module, p: float) -> None:
    """Give every dropout of an encoder the probability p."""
    for module in encoder.modules():
        if isinstance(module, Dropout):
            module.p = p
