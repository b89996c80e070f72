"""The trained pair and router: their gates on problems that training never drew, labels against one-by-one labels, wrong ways found out,
and the recorded rows, recomputed in part."""
import numpy as np
import pytest
import torch

from frugal.core.claims import check_recorded
from frugal.core.pair import LARGE, generate_pair
from frugal.data import arithmetic_chains as ac
from frugal.early_exit import claims_r2r, figures_r2r, r2r, r2r_measure
from frugal.early_exit.r2r_labels import DIVERGENT, IDENTICAL, NEUTRAL, label, label_answers
from frugal.early_exit.r2r_router import load_router, rates, scores_of
from frugal.explore import figure_summary, figure_table
from frugal.models import load_card
from frugal.models.r2r_pair import LLM_SHAPE, load_pair, make_lm, right_share, write_answers
from frugal.models.mini_tim import initial_weights, training_forward

PROBLEMS = ac.chains(90_001, 200)                  # a seed that no recipe uses


@pytest.fixture(scope="module")
def pair():
    return load_pair()


@pytest.fixture(scope="module")
def routed(pair):
    return load_router(pair[1])


@pytest.fixture(scope="module")
def labelled(pair):
    return label_answers(*pair, PROBLEMS[:60])


def test_what_is_trained_is_what_runs():
    weights = initial_weights(1, LLM_SHAPE)
    tokens = torch.randint(0, ac.VOCAB_SIZE, (2, 70), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(training_forward(weights, tokens, LLM_SHAPE), make_lm(weights, LLM_SHAPE)(tokens), atol=1e-5, rtol=1e-4)


def test_the_pair_is_in_its_bands(pair):
    large, small = (right_share(write_answers(model, PROBLEMS), PROBLEMS) for model in pair)
    assert large >= 0.95 and 0.35 <= small <= 0.70                    # 200 problems: the gates of 0.97 and 0.40-0.65, less the noise
    assert load_card("r2r_llm")["metrics"]["right_share"] >= 0.97 and 0.40 <= load_card("r2r_slm")["metrics"]["right_share"] <= 0.65
    assert pair[0].num_parameters > 10 * pair[1].num_parameters


def test_the_data_of_the_cards_is_the_data_of_today():
    assert {load_card(name)["data_hash"] for name in ("r2r_llm", "r2r_slm", "r2r_router")} == {ac.data_hash()}


def test_labels_are_those_of_both_continuations_written_out(pair, labelled):
    large, _ = pair
    seen = set()
    for one in labelled[:6]:
        for i, (token, kind) in enumerate(zip(one.proposed, one.kind)):
            at = one.num_prompt + i
            if kind != IDENTICAL or i % 7 == 0:
                assert kind == label(large, one.text[:at], token, one.text[at])
                seen.add(kind)
    assert seen == {IDENTICAL, NEUTRAL, DIVERGENT}


def test_most_tokens_are_alike_and_words_of_style_are_neutral(labelled):
    rows = r2r_measure.label_shares(labelled).set_index(["group", "kind"])["share"]
    assert rows["all", "identical"] > 0.8 and 0.002 < rows["all", "divergent"] < 0.06
    differ = {group: rows[group].drop("identical") for group in ("style word", "digit")}
    divergent = {group: own.get("divergent", 0) / own.sum() for group, own in differ.items()}
    assert divergent["style word"] < 0.2 and divergent["digit"] > 2 * divergent["style word"]
    assert rows.groupby("kind").sum().sum() == pytest.approx(2)        # "all" and its three groups


def test_labels_from_the_small_models_continuations_are_others(pair, labelled):
    """The betrayal of the notes: the small model repeats its own slips, or slips on the large model's words."""
    _, small = pair
    others = [(label(small, one.text[:one.num_prompt + i], token, one.text[one.num_prompt + i]), kind)
              for one in labelled[:8] for i, (token, kind) in enumerate(zip(one.proposed, one.kind)) if kind != IDENTICAL]
    assert any(wrong != right for wrong, right in others)


def test_the_router_catches_what_it_was_set_to_catch(pair, routed, labelled):
    router, threshold = routed
    scores, divergent = scores_of(router, pair[1], labelled)
    recall, false = rates(scores, divergent, threshold)
    assert recall >= 0.85 and false < 0.2
    assert sum(len(one.kind) for one in labelled) == len(scores)


def test_both_ends_and_the_large_cache(pair, routed):
    large, small = pair
    for chain in PROBLEMS[:2]:
        for threshold, model in ((0.0, large), (2.0, small)):
            alone, = write_answers(model, [chain])
            assert r2r.R2R(threshold).generate(chain.prompt(), pair, routed[0]).tokens == alone
        run = r2r.R2R().generate(chain.prompt(), pair)
        seen, fresh = int(run.large_cache.num_seen[0]), large.new_cache()
        if seen:
            large(torch.tensor([(chain.prompt() + run.tokens)[:seen]]), fresh)
            for layer in range(large.config.num_layers):
                torch.testing.assert_close(run.large_cache.keys[layer][:, :, :seen], fresh.keys[layer][:, :, :seen], atol=1e-5, rtol=1e-4)


def test_the_oracle_is_about_as_good_as_the_large_model_and_asks_little(pair):
    large, small = pair
    problems = PROBLEMS[:12]
    runs = [generate_pair(small, large, chain.prompt(), r2r.oracle(large), 1.0, ac.MAX_ANSWER) for chain in problems]
    assert right_share([run.tokens for run in runs], problems) >= right_share(write_answers(large, problems), problems) - 0.1
    assert np.mean([run.large_share for run in runs]) < 0.06
    assert all(run.writers[i] == LARGE or run.proposed[i] == token for run in runs for i, token in enumerate(run.tokens))


def test_routing_beats_chance_with_an_interval_that_does_not_touch_it(pair, routed):
    """The same share of calls, by the router and blindly, on fresh problems: Wilson intervals apart."""
    large, small = pair
    router, threshold = routed
    good = r2r_measure.write_routed(small, large, PROBLEMS, r2r.router_scores(router, small), threshold)
    share = sum(len(one.large_read) for one in good) / sum(len(one.tokens) for one in good)
    blind = r2r_measure.write_routed(small, large, PROBLEMS, r2r.random_scores(0), 1 - share)
    right = [sum(ac.final_answer(one.tokens) == chain.answer for one, chain in zip(texts, PROBLEMS)) for texts in (good, blind)]
    assert r2r_measure.wilson(right[0], 200)[0] > r2r_measure.wilson(right[1], 200)[1]
    assert share < 0.5


def test_accuracy_counted_teacher_forced_would_flatter(pair):
    """The betrayal of the notes: reading the right text, the small model names the right answer far more often than alone."""
    _, small = pair
    problems, rng, forced = PROBLEMS[:60], np.random.default_rng(0), 0
    for chain in problems:
        text = chain.prompt() + ac.write_solution(chain, rng)
        said = small(torch.tensor([text]))[0].argmax(-1).tolist()
        at = text.index(ac.ANSWER)
        forced += said[at:at + 3] == text[at + 1:at + 4]
    assert forced / 60 > right_share(write_answers(small, problems), problems) + 0.2


# -- recorded rows ------------------------------------------------------------------------------------------------------------------

def test_recorded_rows_can_be_made_again(pair, routed):
    rows = figures_r2r.recorded("r2r_methods")
    large, small = pair
    from_recipe = ac.chains(30_001, int(rows["problems"].max()))
    alone = {name: right_share(write_answers(model, from_recipe), from_recipe) for name, model in (("large model", large), ("small model", small))}
    for name, right in alone.items():
        assert rows.loc[rows["method"] == name, "right"].item() == pytest.approx(right, abs=0.005)
    assert set(rows["method"]) == set(r2r_measure.METHODS)
    assert set(rows["router_size"]) == {0, routed[0].num_parameters} and set(rows["large_size"]) == {large.num_parameters}


def test_recorded_methods_keep_their_promises():
    rows = figures_r2r.recorded("r2r_methods").set_index("method")
    large, small = rows.loc["large model"], rows.loc["small model"]
    assert rows.loc["every different token", "right"] == large["right"]
    assert (rows.loc["speculative", "right"] >= large["right"] - 0.03).all()           # lossless, on fewer problems
    assert rows.loc["label oracle", "right"] >= large["right"] - 0.05
    assert (rows["right"] >= rows["right_low"]).all() and (rows["right"] <= rows["right_high"]).all()
    assert small["calls"] == 0 and large["calls"] == 1 and small["activated"] < rows.loc["router", "activated"].min() < large["activated"]
    by_calls = rows.loc["router"].sort_values("calls")
    assert by_calls["right"].iloc[-1] >= by_calls["right"].iloc[0]


def test_claims_have_the_recorded_verdicts():
    check_recorded(claims_r2r.CLAIMS)


def test_the_papers_average_means_an_eighth_of_the_tokens():
    assert (claims_r2r.AVERAGE_B - claims_r2r.SMALL_B) / claims_r2r.LARGE_B == pytest.approx(0.128, abs=5e-4)
    assert claims_r2r.projected_speedup(0.128125) == pytest.approx(32 / 5.6, rel=1e-3)  # as long as reading weights is what takes time


@pytest.mark.parametrize("figure, name, choices", [
    (figures_r2r.routing_front, "r2r_methods", {"cost": "activated"}), (figures_r2r.routing_front, "r2r_methods", {"cost": "calls"}),
    (figures_r2r.routing_front, "r2r_methods", {"cost": "flops"}), (figures_r2r.label_bar, "r2r_labels", {}),
    (figures_r2r.speed_bar, "r2r_speed", {}), (figures_r2r.prose_curve, "r2r_prose", {})])
def test_figures_are_drawn_from_recorded_rows(figure, name, choices):
    fig = figure(figures_r2r.recorded(name), **choices)
    assert fig.layout.title.text and fig.layout.xaxis.title.text and figure_summary(fig) and len(figure_table(fig)) > 1


def test_two_hands_draws_every_problem_and_threshold():
    rows = figures_r2r.recorded("r2r_chains")
    for problem in rows["problem"].unique().tolist():
        for threshold in rows["threshold"].unique().tolist():
            own = rows[(rows["problem"] == problem) & (rows["threshold"] == threshold)]
            fig = figures_r2r.two_hands(rows, problem=problem, threshold=threshold)
            drawn = {trace.name: len(trace.x) for trace in fig.data}
            assert drawn["large model wrote it"] == (own["writer"] == "large").sum()
            assert drawn["small model wrote it"] == (own["writer"] == "small").sum()
    never = rows[rows["threshold"] == 2.0]
    assert (never["writer"] == "small").all() and (never["answer"] != never["right"]).all()     # chosen because the small model fails


def test_an_unknown_cost_is_named():
    with pytest.raises(ValueError, match="cost='time'"):
        figures_r2r.routing_front(figures_r2r.recorded("r2r_methods"), cost="time")
