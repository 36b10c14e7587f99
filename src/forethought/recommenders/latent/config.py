"""The settings of models that reason in latent space: those they share, and each one's own."""

from __future__ import annotations

from math import inf
from typing import Literal

from huggingface_hub.dataclasses import strict

from forethought.nn.encoder import Norm
from forethought.nn.reasoning import Adapter, Depth, Start
from forethought.recommenders.base import RecommenderConfig


@strict
class LatentConfig(RecommenderConfig):
    """What every way of reasoning has: an encoder, steps, a readout, and what the steps learn from.

    Attributes:
        items: what an item's vector is made of: a learned one an item (``id``), a learned reading of its frozen text
            vector (``text``; UniSRec, inductive), or the sum of ``both`` (UniSRec, transductive).
        experts, text_dropout: of that reading; see :class:`forethought.nn.text_items.WhiteningExperts`.
        text_size, text_encoder: width and origin of the text vectors; set by the data.
        hidden_size, num_blocks, num_heads, inner_size, dropout, norm: of the encoder, as SASRec's; ``norm: post``
            is the block of both papers.
        similarity: of a state and an item: inner product (``dot``) or ``cosine``.
        temperature: τ, which divides either.
        loss, negatives, negative_power, logq: of the cross-entropies, as SASRec's: over the whole catalogue (``ce``) or
            a sample of it (``sampled``).
        steps: K, taken after the history is read; 0 is the plain encoder, bit for bit.
        adapter: what a step reads of the newest state and the first; see :class:`forethought.nn.reasoning.Adapt`.
        readout: what is ranked by: the ``last`` state, the ``mean`` of all (ERL), their average under a learned
            softmax (``gate``), or ``dual``: that average over the steps alone while training, the encoder's state added
            to it when ranking (PLR).
        supervision: which states predict the target by themselves, besides the readout: ``none``, the ``final`` one,
            ``every`` one (PRL), or every one that a ``teacher`` tells too which other items were near (ManCAR).
        step_weight, step_reduction: of those states' cross-entropies: their ``mean`` (PRL as released) or ``sum`` (the
            paper), without the last one where the readout is that state.
        cooling: α: state k of K has the temperature τ α^(K - k). Above 1 steps cool (PRL), below 1 they heat (ManCAR).
        teacher_weight, teacher_gamma, teacher_neighbours: λ of the divergence of each state's answer from that of a
            teacher, who knows the target, the newest item, and so many of that item's strongest neighbours in the Swing
            graph of the training part, and trusts the one of rank r as exp(-r / γ_k) with γ_k = γ (K - k + 1).
        kl_weight: λ of the divergence between the steps' answers, which is subtracted.
        kl_form: ``paper``: the sum over pairs i < j of KL(i ‖ j); ``released``: the mean over ordered pairs i ≠ j of
            KL(j ‖ i) with no gradient into i.
        contrast_weight: of telling each row's noised thought from those of other rows (PRL).
        noise_std: of what is added to the state a noised step goes on from: 0.01 as released; 0.1 is the paper's
            γ = 0.01 as the variance it says.
        trajectory_weight: of aligning the thought with that of another view (LARES).
        view: that other view: another history with the same target (``same_target``, LARES), or the same history under
            another dropout mask (``same_history``, DuoRec's unsupervised half).
        step_alignment_weight: of aligning the last state with an earlier one of its own thought (LARES).
        contrast_temperature: of these contrasts, which then compare states by cosine. At 0 they compare states as a
            state and an item are compared, which is what the papers do: inner products of wide normed states are so
            large that the softmax is saturated.
        mask_false_negatives: whether rows with one's own target are kept from being negatives in the contrasts.
    """

    model_type = "forethought-latent"

    items: Literal["id", "text", "both"] = "id"
    experts: int = 8
    text_dropout: float = 0.2
    text_size: int = 0
    text_encoder: str = ""
    hidden_size: int = 64
    num_blocks: int = 2
    num_heads: int = 2
    inner_size: int = 0
    dropout: float = 0.1
    norm: Norm = "pre"
    similarity: Literal["dot", "cosine"] = "dot"
    temperature: float = 1.0
    loss: Literal["ce", "sampled"] = "ce"
    negatives: int = 256
    negative_power: float = 0.0
    logq: bool = True
    steps: int = 2
    adapter: Adapter = "none"
    readout: Literal["last", "mean", "gate", "dual"] = "last"
    supervision: Literal["none", "final", "every", "teacher"] = "none"
    step_weight: float = 1.0
    step_reduction: Literal["mean", "sum"] = "mean"
    cooling: float = 1.0
    teacher_weight: float = 0.1
    teacher_gamma: float = 1.0
    teacher_neighbours: int = 20
    kl_weight: float = 0.0
    kl_form: Literal["paper", "released"] = "released"
    contrast_weight: float = 0.0
    noise_std: float = 0.01
    trajectory_weight: float = 0.0
    view: Literal["same_target", "same_history"] = "same_target"
    step_alignment_weight: float = 0.0
    contrast_temperature: float = 0.0
    mask_false_negatives: bool = True

    def validate_reasoning(self) -> None:
        """Refuse weights and temperatures that mean nothing; called when the config is made."""
        if self.experts < 1:
            raise ValueError(f"experts is {self.experts}; it has to be at least 1")
        if not 0 <= self.text_dropout < 1:
            raise ValueError(f"text_dropout is {self.text_dropout}; it has to be at least 0 and less than 1")
        for key in ("temperature", "cooling", "teacher_gamma"):
            if not 0 < getattr(self, key) < inf:
                raise ValueError(f"{key} is {getattr(self, key)}; it has to be greater than 0")
        for key in (
            "steps", "step_weight", "kl_weight", "contrast_weight", "noise_std", "trajectory_weight",
            "step_alignment_weight", "contrast_temperature", "teacher_weight", "teacher_neighbours",
        ):  # fmt: skip
            if not 0 <= getattr(self, key) < inf:
                raise ValueError(f"{key} is {getattr(self, key)}; it has to be at least 0")


@strict
class ReaRecConfig(LatentConfig):
    """ReaRec: reasoning tokens appended to the history. ERL and PRL are settings of it; see ``recipes/rearec``.

    Attributes:
        backbone: ``sasrec``: every item looks back, and one pass learns from every position. ``bert4rec``: items look
            at all of the history, and one prefix a row, drawn anew each time, is learned from.
    """

    model_type = "forethought-rearec"

    backbone: Literal["sasrec", "bert4rec"] = "sasrec"


@strict
class LARESConfig(LatentConfig):
    """LARES: a core of shared weights applied again to all tokens.

    Attributes:
        steps: m: of the answer, and the mean or mode of the depths drawn in training.
        core_blocks: of the core; ``num_blocks`` is the part before it, applied once.
        start, core_norm: see :class:`forethought.nn.reasoning.RecurrentEncoder`. The defaults are those that
            were found to add hops; ``normal``, ``add`` and ``core_norm: true`` with ``norm: post`` are the paper's.
        depth, shallowest: of training batches; see :func:`forethought.nn.reasoning.draw_depth`.
        start_std, start_scale: deviation of the noise of ``start: normal``, and what it is multiplied with.
        post_objective: of ``post_training``. ``thought``: each step's states are drawn around what the core gives, the
            reward is the target's log-probability, and what made a thought better than others of its group is made
            likelier. ``released``: the reward is whether the target is in the top ``post_k``, and what is made likelier
            is the target.
        post_rollouts, post_noise, post_k, post_beta: G; deviation of the drawn states (``thought``); k of the reward
            (``released``); β, of the divergence from the model as it was.
        post_candidates: learn from targets that one of the reference's rollouts has among so many; 0 takes all.
        post_dropout: in place of ``dropout`` (``released``; ``thought`` has none).
        test_draws: answers are averaged over so many fixed initial states where these are noise; 0 draws a new one for
            every answer, as released.
    """

    model_type = "forethought-lares"

    num_blocks: int = 1
    core_blocks: int = 1
    steps: int = 4
    start: Start = "history"
    core_norm: bool = False
    depth: Depth = "poisson-lognormal"
    shallowest: int = 1
    start_std: float = 1.0
    start_scale: float = 3.0
    post_objective: Literal["thought", "released"] = "thought"
    post_rollouts: int = 8
    post_noise: float = 0.1
    post_k: int = 10
    post_beta: float = 0.1
    post_candidates: int = 100
    post_dropout: float = 0.1
    test_draws: int = 1

    def validate_recurrence(self) -> None:
        """Refuse depths that cannot be drawn; called when the config is made."""
        for key, least in (
            ("core_blocks", 1), ("shallowest", 1), ("test_draws", 0), ("start_scale", 0),
            ("post_rollouts", 2), ("post_noise", 0), ("post_k", 1), ("post_beta", 0), ("post_candidates", 0),
        ):  # fmt: skip
            if not least <= getattr(self, key) < inf:
                raise ValueError(f"{key} is {getattr(self, key)}; it has to be at least {least} and finite")
        if not 0 < self.start_std < inf:
            raise ValueError(f"start_std is {self.start_std}; it has to be greater than 0 and finite")
        if self.contrast_weight:
            raise ValueError("contrast_weight is of appended tokens; a lares has trajectory_weight in its place")
        if self.post_objective == "thought" and not self.post_noise:
            raise ValueError("post_noise is 0; without noise all thoughts of a group are one")
        if not 0 <= self.post_dropout < 1:
            raise ValueError(f"post_dropout is {self.post_dropout}; it has to be at least 0 and less than 1")
        if self.depth == "uniform" and self.shallowest > self.steps > 0:
            raise ValueError(f"shallowest is {self.shallowest}; it has to be at most steps, {self.steps}")
