"""A server under load: conservation, Little's law, the KV cache's limit, latencies, saturation."""

import json
import tomllib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sim.inputs.files import InputError
from sim.inputs.hardware import load_profile
from sim.inputs.models import MODELS
from sim.report.present import save, show
from sim.runs.scenario import Limits
from sim.schedules import make_schedule
from sim.whole_model.iteration_times import (
    IterationTimes,
    ServedModel,
    doublings,
    iteration_times,
)
from sim.whole_model.passes import model_pass, replay
from sim.whole_model.server import Request, Server, Service
from sim.whole_model.serving import Lengths, ServingAnswer, ServingQuestion, draw_traffic
from sim.whole_model.setting import RESERVE_BYTES, Setting

SCENARIO = Path(__file__).parents[2] / "scenarios" / "serving.toml"
H100 = load_profile("h100-sxm")


def prefill_s(prompts: Sequence[int]) -> float:
    return 0.5 + 0.25 * sum(prompts) + 0.125 * len(prompts)


def decode_s(batch: int, mean_lengths: Any) -> Any:
    return 1 + 0.125 * batch + 0.03125 * batch * mean_lengths


@st.composite
def services(draw: Any) -> Service:
    """A small server, with a cache that holds any one request, and what it is asked."""
    page_tokens = draw(st.integers(1, 5))
    requests = draw(st.integers(1, 25))
    times = st.floats(0, 60, allow_nan=False).map(lambda t: round(t, 3))
    arrivals_s = sorted(draw(st.lists(times, min_size=requests, max_size=requests)))
    lengths = st.lists(st.integers(1, 12), min_size=requests, max_size=requests)
    asked = [Request(*row) for row in zip(arrivals_s, draw(lengths), draw(lengths), strict=True)]
    longest = max(request.prompt + request.output for request in asked)
    pages = -(-longest // page_tokens) + draw(st.integers(0, 20))
    server = Server(
        pages=pages,
        page_tokens=page_tokens,
        max_batch=draw(st.integers(1, 8)),
        prefill_tokens=draw(st.integers(1, 40)),
        prefill_s=prefill_s,
        decode_s=decode_s,
    )
    service = Service(server, asked)
    service.run()
    return service


@given(services())
def test_every_request_is_answered_once_and_whole(service):
    for request in service.requests:
        assert request.made == request.output
        assert request.arrival_s < request.first_s <= request.done_s
    assert sum(one.batch for one in service.iterations) == sum(r.output for r in service.requests)
    assert not service.waiting
    assert not service.running
    assert service.free_pages == service.server.pages


@given(services())
def test_neither_the_cache_nor_the_batch_exceeds_its_limit(service):
    server = service.server
    for one in service.iterations:
        assert 0 < one.pages <= server.pages
        assert one.batch + (one.running if one.prefill else 0) <= server.max_batch


@given(services())
def test_the_cache_holds_just_what_decoding_requests_have(service):
    """Without preemption, pages are at any time those of the tokens that requests then have."""
    assume(not any(request.preempted for request in service.requests))
    made = dict.fromkeys(service.requests, 0)
    for one in service.iterations:
        for_prefill = [
            r for r in service.requests if r.first_s == one.end_s and not made[r] and one.prefill
        ]
        running = [r for r in service.requests if r.first_s <= one.start_s < r.done_s]
        held = {r: r.prompt + made[r] - (0 if not one.prefill else 1) for r in running}
        held |= {r: r.prompt for r in for_prefill}
        assert one.pages == sum(service.server.pages_of(tokens) for tokens in held.values())
        for r in for_prefill if one.prefill else running:
            made[r] += 1


@given(services())
def test_the_gpu_does_one_iteration_at_a_time_and_rests_only_when_nobody_waits(service):
    clock_s = 0.0
    for one in service.iterations:
        assert one.end_s > one.start_s >= clock_s
        if one.start_s > clock_s:
            assert all(
                r.done_s <= clock_s or r.arrival_s >= one.start_s - 1e-9 for r in service.requests
            )
        clock_s = one.end_s


@given(services())
def test_first_come_first_served(service):
    firsts = [request.first_s for request in service.requests]
    assert firsts == sorted(firsts)


@given(services())
def test_littles_law_holds_of_the_requests_that_decode(service):
    """Their mean number, as the iterations count them, is their rate times their mean stay."""
    assume(not any(request.preempted for request in service.requests))
    counted = sum((one.end_s - one.start_s) * one.running for one in service.iterations)
    stays = sum(request.done_s - request.first_s for request in service.requests)
    assert counted == pytest.approx(stays)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 7))
def test_alone_a_request_takes_the_sum_of_its_iterations(prompt, output, page_tokens):
    server = Server(100, page_tokens, 4, 8, prefill_s, decode_s)
    service = Service(server, [Request(3.0, prompt, output)])
    service.run()
    (request,) = service.requests
    assert request.first_token_s == prefill_s([prompt])
    later_s = sum(decode_s(1, prompt + made) for made in range(1, output))
    assert request.done_s - request.first_s == pytest.approx(later_s)
    assert request.per_token_s == (pytest.approx(later_s / (output - 1)) if output > 1 else None)


def test_a_full_cache_sends_the_last_away_to_start_again():
    """Two pages of four tokens each way: together they fit until they have grown."""
    server = Server(4, 4, 8, 100, prefill_s, decode_s)
    service = Service(server, [Request(0.0, 5, 8), Request(0.0, 5, 8)])
    service.run()
    first, last = service.requests
    assert (first.preempted, last.preempted) == (0, 1)
    # 13 tokens of the first need four pages: the other waits till it is done, then starts over.
    again = [one for one in service.iterations if one.prefill]
    assert [one.batch for one in again] == [2, 1]
    assert again[1].start_s == first.done_s
    # Both have 5 + 3 tokens cached when the ninth comes.
    assert again[1].end_s - again[1].start_s == prefill_s([5 + 4])


def test_who_was_sent_away_comes_before_those_that_arrived_later():
    server = Server(4, 4, 8, 100, prefill_s, decode_s)
    service = Service(server, [Request(0.0, 5, 8), Request(0.0, 5, 8), Request(6.0, 5, 2)])
    service.run()
    first, sent_away, later = service.requests
    assert (first.preempted, sent_away.preempted, later.preempted) == (0, 1, 0)
    # The cache has room for one at a time.
    assert first.done_s < sent_away.done_s < later.first_s


def test_an_iteration_prefills_what_its_budget_holds():
    server = Server(100, 4, 8, 10, prefill_s, decode_s)
    asked = [Request(0.0, prompt, 1) for prompt in (4, 6, 11, 3)]
    service = Service(server, asked)
    service.run()
    assert [(one.prefill, one.batch) for one in service.iterations] == [
        (True, 2),
        (True, 1),
        (True, 1),
    ]


@given(st.integers(1, 64), st.integers(1, 5000))
def test_sizes_double_up_to_the_most(first, most):
    sizes = doublings(first, most)
    assert sizes[0] == first
    assert sizes[-1] >= most
    assert len(sizes) >= 2
    assert all(after == 2 * before for before, after in pairwise(sizes))


class OneByOne(Service):
    """A service that tells one iteration at a time."""

    def _pages_to_come(self) -> Any:
        return super()._pages_to_come()[:1]


@given(services())
def test_iterations_told_at_once_are_those_told_one_by_one(service):
    asked = [Request(r.arrival_s, r.prompt, r.output) for r in service.requests]
    each = OneByOne(service.server, asked)
    each.run()
    assert each.iterations.tolist() == service.iterations.tolist()
    for one, other in zip(each.requests, service.requests, strict=True):
        assert vars(one) == vars(other)


def served() -> ServedModel:
    schedules = (make_schedule({"name": n}, "a test") for n in ("flash2", "flash_decoding"))
    return ServedModel(MODELS["llama-3-8b"], H100, *schedules)


@pytest.fixture(scope="module")
def times() -> IterationTimes:
    return iteration_times(served(), 4096, 64, "a test", Limits())


def replayed(one: Any) -> float:
    ((_, time),) = replay([one], "a test", Limits(), lambda *_: None)
    assert time is not None
    return time.time_s


@pytest.mark.parametrize(("batch", "length"), [(1, 16), (8, 1024), (64, 4096)])
def test_on_the_grid_times_are_replays(times, batch, length):
    of = served()
    decoding = model_pass(Setting(of.shape, H100, of.decode, batch=batch), "decode", length)
    assert times.decode_s(batch, length) == pytest.approx(replayed(decoding))
    assert times.prefill_s([length]) == pytest.approx(
        replayed(model_pass(Setting(of.shape, H100, of.prefill), "prefill", length))
    )


@pytest.mark.parametrize(
    ("batch", "length"), [(1, 700), (3, 90), (11, 1500), (23, 3000), (50, 300)]
)
def test_between_they_are_within_four_per_cent(times, batch, length):
    of = served()
    decoding = model_pass(Setting(of.shape, H100, of.decode, batch=batch), "decode", length)
    assert times.decode_s(batch, length) == pytest.approx(replayed(decoding), rel=0.04)
    assert times.prefill_s([length]) == pytest.approx(
        replayed(model_pass(Setting(of.shape, H100, of.prefill), "prefill", length)), rel=0.04
    )


def tables(**changes: Any) -> dict[str, Any]:
    serving = {
        "model": "llama-3-8b",
        "requests_per_s": [2, 64, 256, 1024],
        "prompt": {"median": 200, "p90": 600},
        "output": {"median": 40, "p90": 90},
        "context": 2048,
        "requests": 200,
        "max_batch": 64,
    }
    hardware = {"profile": "h100-sxm", "price_per_hour": 3.6}
    return {"title": "a test", "hardware": hardware, "serving": serving | changes}


def question(**changes: Any) -> ServingQuestion:
    return ServingQuestion.from_tables(tables(**changes), "mine", "mine.toml")


@pytest.fixture(scope="module")
def answer() -> ServingAnswer:
    return question().answer()


def test_the_same_seed_gives_the_same_answer_to_the_bit(answer):
    assert question().answer().json() == answer.json()
    assert question(seed=1).answer().json() != answer.json()


def test_with_load_throughput_rises_to_saturation_and_latencies_rise(answer):
    tokens = [load.tokens_per_s for load in answer.loads]
    for name in ("tokens_per_s", "ttft_median_s", "ttft_p95_s", "tpot_median_s", "batch"):
        for before, after in pairwise(getattr(load, name) for load in answer.loads):
            assert after > 0.97 * before, name
    assert answer.saturation_tokens_per_s == max(tokens)
    rate = answer.saturation_requests_per_s
    assert rate is not None
    assert 64 < rate < 256
    light = question(requests_per_s=[0.5, 1]).answer()
    assert light.saturation_requests_per_s is None


def test_a_light_load_is_served_as_it_comes(answer):
    offered = answer.loads[0].requests_per_s * question().traffic.outputs.mean()
    assert answer.loads[0].tokens_per_s == pytest.approx(offered, rel=0.2)


def test_prices_are_of_the_tokens_made(answer):
    for load in answer.loads:
        assert load.price_per_million_tokens == pytest.approx(1e-3 / load.tokens_per_s * 1e6)


def test_no_iteration_is_below_the_time_of_its_bytes(times):
    """A ceiling of throughput: decoding reads all weights and its requests' caches."""
    asked = question()
    service = Service(asked.server(times), asked.traffic.at(200))
    service.run()
    shape = MODELS["llama-3-8b"]
    weights = 2 * (shape.parameters - shape.vocab * shape.hidden)
    token = 2 * shape.layers * 2 * shape.kv_heads * shape.head_dim
    for one in service.iterations:
        if not one.prefill:
            cached = max(0, one.pages - one.batch) * 16 * token
            roof_s = (weights + cached) / (3.35e12 * 0.9)
            assert one.end_s - one.start_s > 0.98 * roof_s


def test_more_cache_never_serves_less(times):
    asked = question()
    made = []
    for pages in (200, 400, 3000):
        server = asked.server(times)
        few = Server(pages, 16, 64, 8192, server.prefill_s, server.decode_s)
        service = Service(few, asked.traffic.at(500))
        service.run()
        made.append(sum(one.batch for one in service.iterations) / service.iterations[-1].end_s)
        assert max(one.pages for one in service.iterations) <= pages
    assert made[0] < made[1] <= 1.02 * made[2]


def test_the_cache_has_what_parameters_activations_and_reserve_leave():
    shape = MODELS["llama-3-8b"]
    token = 2 * shape.layers * 2 * shape.kv_heads * shape.head_dim
    free = 80 * 2**30 - 2 * shape.parameters - RESERVE_BYTES
    pages = question(prefill_tokens=1).pages
    assert pages * 16 * token <= free
    assert pages * 16 * token > 0.99 * free
    in_part = question(prefill_tokens=1, utilisation=0.9).pages
    assert (pages - in_part) * 16 * token == pytest.approx(0.1 * 80 * 2**30, rel=0.001)
    inside = 2 * 8192 * (2 * shape.hidden + 3 * shape.mlp + shape.hidden)
    assert (pages - question().pages) * 16 * token == pytest.approx(inside, rel=0.05)


def test_lengths_have_their_median_and_90th_percentile():
    drawn = Lengths(median=1730, p90=5696).draw(np.random.default_rng(0), 20_000)
    assert np.median(drawn) == pytest.approx(1730, rel=0.03)
    assert np.percentile(drawn, 90) == pytest.approx(5696, rel=0.03)
    assert set(Lengths(tokens=7).draw(np.random.default_rng(0), 5)) == {7}


@given(st.integers(0, 100), st.floats(0.1, 100))
def test_all_loads_have_the_same_requests_at_their_own_rate(seed, rate):
    asked = draw_traffic(question(seed=seed).table, 2048, "a test")
    requests = asked.at(rate)
    assert [r.prompt for r in requests] == asked.prompts.tolist()
    assert all(r.prompt + r.output <= 2048 for r in requests)
    assert requests[-1].arrival_s * rate == pytest.approx(asked.arrivals_s[-1])
    assert asked.arrivals_s[-1] == pytest.approx(200, rel=0.4)  # 200 at one a second


def test_an_answer_is_shown_and_saved(answer, tmp_path, capsys):
    show(answer)
    printed = capsys.readouterr().out
    assert "saturated at" in printed
    assert "$" in printed
    save(answer, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "latency.png"}
    saved = json.loads((tmp_path / "results.json").read_text())
    assert [load["requests_per_s"] for load in saved["loads"]] == [2, 64, 256, 1024]
    assert saved["cache_tokens"] == answer.cache_tokens


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"model": "llama3"}, ["serving.model", "there are llama-3-8b, llama-3-70b"]),
        ({"requests_per_s": []}, ["serving.requests_per_s"]),
        ({"requests_per_s": [0]}, ["serving.requests_per_s.0 = 0"]),
        ({"requests": 3}, ["serving.requests = 3"]),
        ({"prompt": {}}, ["serving.prompt: give tokens, or median and p90"]),
        ({"prompt": {"median": 3}}, ["give tokens, or median and p90"]),
        ({"prompt": {"tokens": 3, "median": 3, "p90": 4}}, ["give tokens, or median and p90"]),
        ({"prompt": {"median": 30, "p90": 4}}, ["p90 = 4 must not be below median = 30"]),
        ({"prompt": {"tokens": 3000}}, ["serving.context = 2048"]),
        ({"model": "llama-3-70b"}, ["h100-sxm has room for 0 tokens of KV cache"]),
        ({"decode": "flash3", "prefill": "decode"}, ["schedule decode"]),
        ({"decode": {"name": "tree_decoding", "gpus": 2}}, ["a schedule of one GPU"]),
        ({"rate": 2}, ["serving.rate: unknown key"]),
    ],
)
def test_bad_tables_are_one_line(change, parts):
    with pytest.raises(InputError) as error:
        question(**change).answer()
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith("mine.toml: ")
    for part in parts:
        assert part in message


def test_the_shipped_question_is_sound():
    data = tomllib.loads(SCENARIO.read_text())
    asked = ServingQuestion.from_tables(data, "serving", "scenarios/serving.toml")
    assert asked.traffic.longest <= 8192
    assert asked.pages * asked.table.page_tokens > 400_000
