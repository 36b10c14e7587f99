"""Progress: raw against centred, time against hindsight, thoughts against tokens, and what no state is needed for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import Ridge

from forethought.errors import DataError
from forethought.instruments.progress import (
    Eta,
    IsotonicMap,
    NormalEquations,
    ProgressProbe,
    monotone,
    progress_labels,
    progress_scores,
    smooth,
)
from forethought.instruments.progress_baselines import ConstantBaseline, LastTokensBaseline, PositionBaseline
from forethought.instruments.progress_gru import ProgressGRU

WIDTH = 8
MEAN = np.array([6.0, 0, 0, 0, 0, 0, 0, 0])
AXIS = np.array([0, 2.0, 0, 0, 0, 0, 0, 0])


def thoughts(number, seed=0, noise=0.3, longest=60):
    """States of a large common mean that move along one axis as the thought goes on."""
    random = np.random.default_rng(seed)
    lengths = random.integers(5, longest, number)
    return [
        MEAN + progress_labels(n)[:, None] * AXIS + noise * random.normal(size=(n, WIDTH)) for n in lengths
    ]  # fmt: skip


def parts(states, folds=5, per_thought=True):
    return NormalEquations.stream(((s, i) for i, s in enumerate(states)), folds, per_thought)


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_labels_end_at_one_with_the_state_that_closes_the_thought():
    assert progress_labels(4).tolist() == [0.25, 0.5, 0.75, 1.0]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 9), st.booleans(), st.booleans())
def test_streamed_sums_give_the_fit_of_all_rows_at_once(seed, number, centred, per_thought):
    states = thoughts(number, seed)
    x, p = np.concatenate(states), np.concatenate([progress_labels(len(s)) for s in states])
    weights = np.concatenate([np.full(len(s), 1 / len(s) if per_thought else 1.0) for s in states])
    probe = ProgressProbe.fit(parts(states, 3, per_thought), centred, ridge=0.01)
    reference = Ridge(alpha=0.01, fit_intercept=centred).fit(x, p, sample_weight=weights)
    assert probe.weight == pytest.approx(reference.coef_, abs=1e-8)
    assert probe.bias == pytest.approx(reference.intercept_, abs=1e-7)
    assert probe.predict(x) == pytest.approx(reference.predict(x), abs=1e-7)


def test_the_raw_fit_is_the_papers():
    """θ = (HᵀH + εI)⁻¹ Hᵀp, no intercept, every token counting once."""
    states = thoughts(20)
    h, p = np.concatenate(states), np.concatenate([progress_labels(len(s)) for s in states])
    theta = np.linalg.solve(h.T @ h + 1e-10 * np.eye(WIDTH), h.T @ p)
    probe = ProgressProbe.fit(parts(states, per_thought=False), centred=False, ridge=1e-10)
    assert probe.weight == pytest.approx(theta)
    assert probe.bias == 0


def test_the_raw_vector_is_contaminated_by_the_mean_state_and_the_centred_is_not():
    """Progress is planted on one axis, at a right angle to the mean."""
    raw, centred = (ProgressProbe.fit(parts(thoughts(200, noise=1.0)), kind) for kind in (False, True))
    assert cosine(centred.weight, AXIS) > 0.99
    assert abs(cosine(centred.weight, MEAN)) < 0.1
    assert cosine(raw.weight, MEAN) > 0.3
    # the constant push along the mean state, which as a steering vector raises or lowers every step alike
    assert abs(raw.weight @ MEAN) > 0.25
    assert abs(centred.weight @ MEAN) < 0.1


def test_a_large_mean_costs_no_digits():
    states = thoughts(40)
    near, far = (ProgressProbe.fit(parts([s + shift for s in states]), ridge=1e-3) for shift in (0.0, 1e7))
    assert far.weight == pytest.approx(near.weight, abs=1e-6)


def test_held_out_errors_come_from_sums_alone():
    states, new = thoughts(30), thoughts(9, seed=1)
    probe = ProgressProbe.fit(parts(states), ridge=0.1)
    squares = [(probe.predict(s) - progress_labels(len(s))) ** 2 for s in new]
    [thought_sums], [token_sums] = parts(new, 1), parts(new, 1, per_thought=False)
    assert probe.held_out_error(thought_sums) == pytest.approx(np.mean([square.mean() for square in squares]))
    assert probe.held_out_error(token_sums) == pytest.approx(np.concatenate(squares).mean())


def test_the_ridge_is_large_where_there_is_little_to_learn_from():
    random = np.random.default_rng(0)
    few = [np.hstack([s, random.normal(size=(len(s), 150))]) for s in thoughts(8, noise=2.0)]
    new = [np.hstack([s, random.normal(size=(len(s), 150))]) for s in thoughts(30, seed=1, noise=2.0)]
    chosen, least = ProgressProbe.fit(parts(few)), ProgressProbe.fit(parts(few), ridge=1e-10)
    scores = [progress_scores([probe.predict(s) for s in new])["mse"] for probe in (chosen, least)]
    assert chosen.ridge > 1e-2
    assert scores[0] < 0.8 * scores[1]


def test_problems_stay_in_one_fold():
    states = thoughts(6)
    found = NormalEquations.stream(zip(states, "abcaab", strict=True), folds=2, per_thought=False)
    assert [part.weight for part in found] == [
        sum(len(states[i]) for i in rows) for rows in ((0, 2, 3, 4), (1, 5))
    ]  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-2, 2), min_size=1, max_size=30), st.floats(0.01, 1))
def test_smoothing_is_the_recursion_and_sees_no_future(values, beta):
    expected = [values[0]]
    for value in values[1:]:
        expected.append(beta * value + (1 - beta) * expected[-1])
    assert smooth(values, beta) == pytest.approx(expected, abs=1e-9)
    half = len(values) // 2 + 1
    assert smooth(values[:half], beta) == pytest.approx(smooth(values, beta)[:half], abs=1e-12)
    assert (np.diff(monotone(values)) >= 0).all()
    assert monotone(values)[-1] == max(values)


def test_smoothing_after_sorting_by_the_answer_flatters_a_predictor_that_knows_nothing_of_time():
    """Noise around each thought's own level: sorted by the true label and smoothed, errors average out."""
    random, own, hindsight = np.random.default_rng(0), [], []
    labels = [progress_labels(50) for _ in range(100)]
    guesses = [p + random.normal(0, 0.4) + random.normal(0, 0.1, 50) for p in labels]
    for guess, p in zip(guesses, labels, strict=True):
        own.append(np.mean((smooth(guess) - p) ** 2))
    flat, truth = np.concatenate(guesses), np.concatenate(labels)
    order = np.argsort(truth, kind="stable")
    hindsight = np.mean((smooth(flat[order]) - truth[order]) ** 2)
    assert hindsight < 0.25 * np.mean(own)


def test_an_isotonic_map_straightens_a_bent_probe():
    random = np.random.default_rng(0)
    bent = [np.sqrt(progress_labels(n)) * 0.5 + 0.02 * random.normal(size=n) for n in random.integers(5, 90, 80)]
    found = IsotonicMap.fit(bent[:40])
    before, after = (progress_scores(x)["mse"] for x in (bent[40:], [found(x) for x in bent[40:]]))
    assert after < 0.1 * before
    assert (np.diff(found(np.linspace(-1, 2, 200))) >= 0).all()
    p = np.concatenate([progress_labels(len(x)) for x in bent[:40]])
    weights = np.concatenate([np.full(len(x), 1 / len(x)) for x in bent[:40]])
    reference = IsotonicRegression(out_of_bounds="clip").fit(np.concatenate(bent[:40]), p, sample_weight=weights)
    assert found(bent[50]) == pytest.approx(reference.predict(bent[50]))


def test_a_thought_counts_once_however_long():
    """One long wrong thought rules the mean over tokens, and is one of eleven in that over thoughts."""
    right, wrong = [progress_labels(10) for _ in range(10)], 1 - progress_labels(1000)
    scores = progress_scores([*right, wrong])
    square = np.mean((1 - 2 * progress_labels(1000)) ** 2)
    assert scores["mse"] == pytest.approx(square / 11)
    assert scores["mse-token"] == pytest.approx(square * 1000 / 1100)
    assert scores["rising"] == pytest.approx(90 / (90 + 999))
    assert scores["order"] == pytest.approx(9 / 11)


def test_scores_of_known_predictors():
    perfect = progress_scores([progress_labels(n) for n in (4, 7, 100)])
    assert (perfect["mse"], perfect["rising"], perfect["order"]) == (0, 1, pytest.approx(1))
    assert perfect["eta-25"] == pytest.approx(0)
    half = progress_scores([np.full(1000, 0.5)])
    assert half["mse"] == pytest.approx(1 / 12, abs=1e-3)
    assert half["order"] == 0
    # at a quarter, ½ foretells a length of 500; at three quarters, 1500
    assert (half["eta-25"], half["eta-50"], half["eta-75"]) == (500, 0, 500)
    assert half["eta-75-relative"] == 0.5


def test_remaining_tokens_have_intervals_that_cover():
    random, covered = np.random.default_rng(0), []

    def noisy(number):
        return [
            np.clip(progress_labels(n) * np.exp(random.normal(0, 0.3)) + 0.02 * random.normal(size=n), 0.01, 1)
            for n in random.integers(20, 400, number)
        ]

    for _ in range(5):
        eta = Eta.fit(noisy(150))
        for guess in noisy(100):
            j = np.arange(1, len(guess) + 1)
            left, low, high = eta.remaining(guess, j)
            covered.append(np.mean((low <= len(guess) - j + 1e-9) & (len(guess) - j - 1e-9 <= high)))
            assert left == pytest.approx(j * (1 - guess) / guess)
    assert np.mean(covered) == pytest.approx(0.9, abs=0.04)
    # of no use at all where a probe says one half throughout, but honest
    vague = Eta.fit([np.full(n, 0.5) for n in random.integers(20, 400, 200)])
    left, low, high = vague.remaining([0.5], [100])
    assert left[0] == 100
    assert low[0] < 20
    assert high[0] > 500


def test_a_bin_without_enough_problems_takes_the_interval_of_all():
    guesses = [progress_labels(30) * 0.5 for _ in range(40)]
    guesses[0] = progress_labels(30)  # alone in the upper bins
    eta = Eta.fit(guesses, bins=200)
    assert np.isfinite(eta.low).all()
    assert np.isfinite(eta.high).all()
    assert eta.high[-1] == pytest.approx(np.log(0.5))  # every other thought was twice as far as its probe said


def test_position_alone_against_a_double_loop_and_shrunk_where_few_get():
    lengths = [3, 5, 5, 40]
    plain = PositionBaseline.fit(lengths, shrinkage=0)
    for j in range(1, 41):
        assert plain.table[j - 1] == pytest.approx(np.mean([j / n for n in lengths if n >= j]))
    shrunk = PositionBaseline.fit(lengths)
    assert abs(shrunk.table[6] - shrunk.table[4]) < abs(plain.table[6] - plain.table[4])
    assert shrunk.predict(50)[39:].tolist() == [shrunk.table[-1]] * 11
    constant = ConstantBaseline.fit(lengths)
    assert constant.value == pytest.approx(np.mean([progress_labels(n).mean() for n in lengths]))
    assert constant.predict(3).tolist() == [constant.value] * 3


def test_the_token_index_alone_beats_a_constant_by_far():
    """What looks like a probe's skill is mostly position."""
    lengths = np.random.default_rng(0).integers(80, 120, 100)
    constant, position = ConstantBaseline.fit(lengths[:50]), PositionBaseline.fit(lengths[:50])
    scores = [progress_scores([model.predict(n) for n in lengths[50:]])["mse"] for model in (constant, position)]
    assert scores[0] == pytest.approx(1 / 12, abs=3e-3)
    assert scores[1] < 0.1 * scores[0]


def test_bags_of_last_tokens_against_dense_counts():
    random = np.random.default_rng(0)
    tokens = [random.choice([3, 50, 70_000], size=n) for n in (5, 9, 30, 1)]
    dense, labels, weights = [], [], []
    for thought in tokens:
        for j in range(len(thought)):
            window = thought[max(0, j - 3) : j + 1]
            dense.append([(window == token).sum() for token in (3, 50, 70_000)])
        labels.append(progress_labels(len(thought)))
        weights.append(np.full(len(thought), 45 / 4 / len(thought)))
    reference = Ridge(alpha=1.0).fit(np.array(dense), np.concatenate(labels), sample_weight=np.concatenate(weights))
    found = LastTokensBaseline.fit(tokens)
    assert found.ids.tolist() == [3, 50, 70_000]
    assert found.weight == pytest.approx(reference.coef_, abs=1e-5)
    assert found.predict(tokens[1]) == pytest.approx(reference.predict(np.array(dense[5:14])), abs=1e-5)
    # tokens never seen say nothing: what is left of the window speaks
    assert found.predict([4, 99_999]) == pytest.approx(found.bias)


def test_closing_words_are_read_from_tokens():
    """Every thought says 7 four tokens before its end; a constant does not know it, words do."""
    random = np.random.default_rng(1)
    tokens = [np.append(random.integers(10, 20, n), [7, 11, 12, 13]) for n in random.integers(20, 60, 60)]
    found = LastTokensBaseline.fit(tokens[:30])
    assert np.mean([found.predict(t)[-1] - found.predict(t)[0] for t in tokens[30:]]) > 0.35


def counting(number, seed):
    """The first state alone tells how long the thought will be; the others say nothing: only memory can follow."""
    random = np.random.default_rng(seed)
    result = []
    for n in random.integers(4, 24, number):
        states = 0.1 * random.normal(size=(n, WIDTH))
        states[0, 0] = n / 8
        states[0, 1:3] = 2
        result.append(torch.tensor(states, dtype=torch.float32))
    return result


def test_a_network_with_a_memory_counts_where_a_line_cannot():
    training, new = counting(160, 0), counting(50, 1)
    model = ProgressGRU.fit(training, rate=1e-2, epochs=20, inner=16, hidden=32)
    line = ProgressProbe.fit(parts([t.numpy() for t in training]))
    position = PositionBaseline.fit([len(t) for t in training])
    scores = {
        "gru": progress_scores([model.predict(t) for t in new])["mse"],
        "line": progress_scores([line.predict(t) for t in new])["mse"],
        "position": progress_scores([position.predict(len(t)) for t in new])["mse"],
    }
    assert scores["gru"] < 0.4 * scores["position"]
    assert scores["position"] < scores["line"]


def test_steps_equal_the_full_pass():
    torch.manual_seed(0)
    model = ProgressGRU(WIDTH, inner=16, hidden=8).double().eval()
    states = torch.randn(3, 20, WIDTH, dtype=torch.float64)
    whole, memory, stepped = model(states), None, []
    for t in range(20):
        progress, memory = model.step(states[:, t], memory)
        assert memory.shape == (1, 3, 8)
        stepped.append(progress)
    torch.testing.assert_close(torch.stack(stepped, dim=1), whole)


def test_losses_are_a_mean_over_thoughts_and_padding_is_nothing():
    torch.manual_seed(0)
    model = ProgressGRU(WIDTH, inner=16, hidden=8).eval()
    states = [torch.tensor(s, dtype=torch.float32) for s in thoughts(6)]
    losses = model._losses(states).detach().numpy()
    expected = [np.mean((model.predict(s) - progress_labels(len(s))) ** 2) for s in states]
    assert losses == pytest.approx(np.array(expected), rel=1e-5)


def test_the_seed_is_the_model_and_thoughts_are_read_as_they_are_needed():
    class Lazy:
        def __init__(self, states):
            self.states, self.reads = states, 0

        def __len__(self):
            return len(self.states)

        def __getitem__(self, i):
            self.reads += 1
            return self.states[i].half()

    before = torch.get_rng_state()
    lazy = Lazy(counting(20, 0))
    one, two = (ProgressGRU.fit(lazy, [i // 2 for i in range(20)], epochs=2, inner=8, hidden=8) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert lazy.reads >= 80
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    other = ProgressGRU.fit(lazy, epochs=2, inner=8, hidden=8, seed=1)
    assert not torch.equal(one.head.weight, other.head.weight)


def test_training_stops_early_and_keeps_the_best():
    """States are noise, so that the held-out error soon rises: more epochs never give a worse model all the same."""
    random = torch.Generator().manual_seed(0)
    noise = [torch.randn(6, WIDTH, generator=random) for _ in range(12)]
    aside = np.random.default_rng(0).permutation(12)[:2]
    errors = {}
    for epochs, patience in ((1, 99), (2, 99), (4, 99), (12, 99), (30, 99), (30, 3)):
        model = ProgressGRU.fit(noise, rate=0.05, batch=2, epochs=epochs, patience=patience, inner=8, hidden=8)
        errors[epochs, patience] = model._losses([noise[i] for i in aside]).mean().item()
    *longer, stopped = errors.values()
    assert longer == sorted(longer, reverse=True)
    assert longer[0] > longer[-1]
    assert stopped >= longer[-1]


def test_a_stored_probe_is_the_probe():
    probe = ProgressProbe.fit(parts(thoughts(10)))
    again = ProgressProbe.from_state(*probe.state())
    states = thoughts(1, seed=5)[0]
    assert (again.predict(states) == probe.predict(states)).all()
    assert again.ridge == probe.ridge


BAD = np.full((4, WIDTH), np.nan)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: parts([BAD]), "NaN"),
        (lambda: parts([]), "no thoughts"),
        (lambda: parts([np.ones((3, 2)), np.ones((3, 5))], 1), "5 wide"),
        (lambda: ProgressProbe.fit(parts([np.ones((1, 2)), np.ones((1, 2))])), "two tokens or more"),
        (lambda: ProgressProbe.fit(parts(thoughts(1))), "two problems or more"),
        (lambda: ProgressProbe.fit(parts(thoughts(4))).predict(np.ones((2, 3))), "3 wide"),
        (lambda: smooth([0.1, 0.2], 0.0), "smoothing factor"),
        (lambda: smooth([0.1, np.nan]), "NaN"),
        (lambda: IsotonicMap.fit([]), "no thoughts"),
        (lambda: progress_scores([[0.1], [np.inf]]), "thought 1 holds NaN or infinity"),
        (lambda: Eta.fit([progress_labels(9)] * 18), "thoughts of 19 problems"),
        (lambda: Eta.fit([progress_labels(9)] * 40, problems=[0, 1] * 20), "thoughts of 19 problems"),
        (lambda: PositionBaseline.fit([3, 0]), "0 tokens long"),
        (lambda: LastTokensBaseline.fit([]), "no thoughts"),
        (lambda: ProgressGRU.fit(counting(3, 0), [1, 1, 1]), "two problems or more"),
        (lambda: ProgressGRU.fit(counting(3, 0), held_out=1.0), "held_out is 1, which leaves none of 3 problems"),
        (lambda: ProgressGRU.fit(counting(3, 0), held_out=0.9), "held_out is 0.9, which leaves none"),
        (lambda: ProgressGRU.fit(counting(3, 0), held_out=float("nan")), "held_out is nan"),
        (lambda: ProgressGRU.fit([torch.tensor(BAD)] * 4, epochs=1), "NaN"),
    ],
)
def test_bad_input_is_said_in_one_sentence(call, said):
    with pytest.raises(DataError, match=said):
        call()
