"""Laws of sigma plans: what every rule keeps, what a plan must be, and an exact velocity gives an
exact clip, whatever the rule, the method and the number of steps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pusa.diffusion.conditioning import Conditioning
from pusa.diffusion.flow import FlowMatching
from pusa.diffusion.plans import Constant, Matrix, NoisyFirst, Pyramid, RollingWindow, SigmaPlan
from pusa.diffusion.sampler import METHODS

FRAMES = 5
SHAPE = (2, 3, FRAMES, 2, 2)
multipliers = st.dictionaries(
    st.integers(0, FRAMES - 1),
    st.floats(0, 1) | st.sampled_from([0.0, 1.0, 1e-3, 1e-12, 1e-40]),
    max_size=FRAMES,
)


@st.composite
def rules_and_steps(draw):
    steps = draw(st.integers(1, 10))
    columns = [sorted(draw(st.lists(st.floats(0, 1), min_size=steps - 1, max_size=steps - 1)))
               for _ in range(FRAMES)]  # fmt: skip
    rows = [[1.0] * FRAMES, *zip(*(column[::-1] for column in columns), strict=True), [0] * FRAMES]
    rule = draw(
        st.sampled_from([Constant(), Matrix(rows)])
        | st.builds(NoisyFirst, st.integers(1, steps))
        | st.builds(Pyramid, st.floats(0, 7))
        | st.builds(RollingWindow, st.integers(1, 6))
    )
    return rule, steps


def conditioned(truth, frames):
    given_frames = {index: (truth[:, :, index], m) for index, m in frames.items()}
    return Conditioning.free(SHAPE).given(given_frames)


@settings(max_examples=150, deadline=None)
@given(multipliers, rules_and_steps(), st.sampled_from(list(METHODS)), st.integers(0, 99))
def test_an_exact_velocity_gives_the_exact_clip(frames, rule_and_steps, method, seed):
    rule, steps = rule_and_steps
    generator = torch.Generator().manual_seed(seed)
    truth, noise = torch.randn(2, *SHAPE, generator=generator)
    conditioning, flow = conditioned(truth, frames), FlowMatching()
    plan = rule(flow.sigmas(steps), conditioning.multiplier)
    result = METHODS[method](
        lambda x, sigma, step: noise - truth,
        noise, conditioning.latents, plan.steps, plan.levels, flow,
    )  # fmt: skip
    torch.testing.assert_close(result, truth, atol=3e-5, rtol=0)


@settings(max_examples=100, deadline=None)
@given(multipliers, rules_and_steps(), st.sampled_from(list(METHODS)))
def test_a_frame_of_multiplier_0_comes_back_bit_for_bit_from_any_model(
    frames, rule_and_steps, method
):
    rule, steps = rule_and_steps
    generator = torch.Generator().manual_seed(0)
    truth, noise = torch.randn(2, *SHAPE, generator=generator)
    conditioning, flow = conditioned(truth, {**frames, 1: 0.0, 4: 0.0}), FlowMatching()
    plan = rule(flow.sigmas(steps), conditioning.multiplier)
    result = METHODS[method](
        lambda x, sigma, step: torch.randn(x.shape, generator=generator),
        noise, conditioning.latents, plan.steps, plan.levels, flow,
    )  # fmt: skip
    assert torch.equal(result[:, :, [1, 4]], truth[:, :, [1, 4]])


@settings(max_examples=60, deadline=None)
@given(multipliers, rules_and_steps(), st.sampled_from(list(METHODS)))
def test_a_frame_of_multiplier_1_is_not_conditioned(frames, rule_and_steps, method):
    """The clip comes out bit for bit as if the frame had not been named."""
    rule, steps = rule_and_steps
    truth, noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    results = []
    for named in ({**frames, 2: 1.0}, {k: m for k, m in frames.items() if k != 2}):
        conditioning, flow = conditioned(truth, named), FlowMatching()
        plan = rule(flow.sigmas(steps), conditioning.multiplier)
        results.append(METHODS[method](
            lambda x, sigma, step: x.sin() + x.mean((1, 2, 3, 4), keepdim=True),
            noise, conditioning.latents, plan.steps, plan.levels, flow,
        ))  # fmt: skip
    assert torch.equal(*results)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.sampled_from(list(METHODS)))
def test_frames_that_share_a_plan_are_sampled_as_with_one_sigma(steps, method):
    """A closed field in x and sigma: all frames together equal each of them alone, bit for bit."""
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))
    flow, clean = FlowMatching(), torch.zeros(SHAPE)
    sigmas = flow.sigmas(steps)
    results = []
    for part in (slice(None), *(slice(f, f + 1) for f in range(FRAMES))):
        plan = Constant()(sigmas, torch.ones(SHAPE[0], noise[:, :, part].shape[2]))
        results.append(METHODS[method](
            lambda x, sigma, step: x * (1 - step) + sigma[:, None, :, None, None],
            noise[:, :, part], clean[:, :, part], plan.steps, plan.levels, flow,
        ))  # fmt: skip
    assert torch.equal(results[0], torch.cat(results[1:], dim=2))


@settings(max_examples=100, deadline=None)
@given(multipliers, rules_and_steps())
def test_every_rule_makes_a_plan_that_starts_at_the_multiplier(frames, rule_and_steps):
    """SigmaPlan itself refuses levels outside [0, 1], a rise, and an end other than 0."""
    rule, steps = rule_and_steps
    multiplier = conditioned(torch.zeros(SHAPE), frames).multiplier
    plan = rule(FlowMatching().sigmas(steps), multiplier)
    assert torch.equal(plan.levels[0], multiplier)
    assert (plan.levels <= plan.steps[:, None, None]).all()


def test_pyramid_and_window_are_what_their_names_say():
    sigmas, free = torch.linspace(1, 0, 5), torch.ones(1, 4)
    plan = Pyramid(lag=2)(sigmas, free)
    assert plan.levels[:, 0].tolist() == [
        [1, 1, 1, 1], [0.75, 1, 1, 1], [0.5, 1, 1, 1], [0.25, 0.75, 1, 1], [0, 0.5, 1, 1],
        [0, 0.25, 0.75, 1], [0, 0, 0.5, 1], [0, 0, 0.25, 0.75], [0, 0, 0, 0.5], [0, 0, 0, 0.25],
        [0, 0, 0, 0],
    ]  # fmt: skip
    assert plan.steps.tolist() == plan.levels[:, 0, 3].tolist()
    assert torch.equal(Pyramid(lag=0)(sigmas, free).levels, Constant()(sigmas, free).levels)
    window = RollingWindow(frames=2)(sigmas, free)
    assert torch.equal(window.levels, plan.levels)
    assert int(((window.levels > 0) & (window.levels < 1)).sum(-1).max()) == 2
    between = Pyramid(lag=0.5)(sigmas, free)
    assert between.levels[2, 0].tolist() == [0.5, 0.625, 0.75, 0.875]


def test_noisy_first_is_clean_after_its_steps_and_constant_with_all_of_them():
    flow, multiplier = FlowMatching(), torch.tensor([[0.4, 1.0, 0.0]])
    sigmas = flow.sigmas(6)
    levels = NoisyFirst(2)(sigmas, multiplier).levels[:, 0]
    expected = 0.4 * (sigmas[1] - sigmas[2]) / (1 - sigmas[2])
    assert levels[:, 0].tolist() == pytest.approx([0.4, float(expected), 0, 0, 0, 0, 0])
    assert levels[:, 1].tolist() == sigmas.tolist()
    assert not levels[:, 2].any()
    constant = Constant()(sigmas, multiplier).levels
    assert torch.equal(NoisyFirst(6)(sigmas, multiplier).levels, constant)


def test_a_matrix_may_raise_noise_again_if_asked_and_still_is_exact():
    rows = [[1, 1], [0.5, 0.7], [0.8, 0.4], [0, 0]]
    with pytest.raises(ValueError, match="latent frame 0 rises after step 1"):
        Matrix(rows)
    truth, noise = torch.randn(2, 1, 3, 2, 2, 2, generator=torch.Generator().manual_seed(3))
    flow = FlowMatching()
    plan = Matrix(rows, may_rise=True)(flow.sigmas(3), torch.ones(1, 2))
    assert plan.steps.tolist() == pytest.approx([1, 0.7, 0.8, 0])
    for method in METHODS.values():
        result = method(lambda x, sigma, step: noise - truth, noise, torch.zeros_like(truth),
                        plan.steps, plan.levels, flow)  # fmt: skip
        torch.testing.assert_close(result, truth, atol=1e-5, rtol=0)


def test_unipc_cannot_put_noise_on_a_clean_frame():
    levels = torch.tensor([0.5, 0.0, 0.3, 0.0])[:, None, None]
    x = torch.zeros(1, 1, 1, 2, 2)
    with pytest.raises(ValueError, match="use euler or heun"):
        METHODS["unipc"](lambda *_: x, x, x, torch.linspace(1, 0, 4), levels, FlowMatching())


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1, 1]], "two rows or more"),
        ([[1, 1], [0]], "all of one length"),
        ([[1.2], [0]], r"levels in \[0, 1\]"),
        ([[float("nan")], [0]], r"levels in \[0, 1\]"),
        ([[1, 1], [0, 0.1]], "latent frame 1 does not"),
    ],
)
def test_a_matrix_that_is_none_is_named(rows, message):
    with pytest.raises(ValueError, match=message):
        Matrix(rows)


def test_a_matrix_must_suit_the_clip():
    sigmas, free = FlowMatching().sigmas(2), torch.ones(1, 2)
    with pytest.raises(ValueError, match=r"set sampler\.num_steps=1"):
        Matrix([[1, 1], [0, 0]])(sigmas, free)
    with pytest.raises(ValueError, match="1 columns, the clip 2 latent frames"):
        Matrix([[1], [0.5], [0]])(sigmas, free)
    half = Matrix([[1, 0.6], [0.5, 0.3], [0, 0]])
    with pytest.raises(ValueError, match="starts latent frame 1 at 0"):
        half(sigmas, free)
    levels = half(sigmas, torch.tensor([[1.0, 0.5]])).levels
    assert levels[:, 0, 1].tolist() == pytest.approx([0.3, 0.15, 0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NoisyFirst(0), "at least 1"),
        (lambda: NoisyFirst(5)(torch.linspace(1, 0, 4), torch.ones(1, 1)), "more than the sampler"),
        (lambda: Pyramid(-1), "0 or more"),
        (lambda: RollingWindow(0), "at least 1"),
        (lambda: SigmaPlan(torch.ones(1), torch.zeros(1, 1, 1)), "S at least 1"),
        (lambda: Conditioning(torch.zeros(SHAPE), torch.full((2, FRAMES), 1.1)), "multipliers"),
        (
            lambda: Conditioning(torch.zeros(SHAPE), torch.full((2, FRAMES), torch.nan)),
            "multiplier",
        ),
    ],
)
def test_a_rule_that_cannot_be_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
