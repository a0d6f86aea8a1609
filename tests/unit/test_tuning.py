"""`python -m tuning`: what it makes of made-up measurements, and a short run on the bundled model."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import DeploymentSchema

from deployments import app
from deployments.messages.answer_format import RESPONSE_FORMATS
from deployments.settings import Sam2ModelConfig
from tuning import __main__ as tune
from tuning import measuring
from tuning.capacity import (
    SPARE,
    DoesNotFit,
    Load,
    Measured,
    Run,
    best_size,
    cost_of_a_million,
    plan,
    propose,
    share,
    worth_growing,
)
from tuning.fragment import check, fragment
from tuning.tables import measured_tables, plan_table, proposal_table

GB = 10**9
LARGE = "facebook/sam2-hiera-large"

# Made up, but of the size that hiera-large in bfloat16 might have: faster up to 8 images, hardly beyond.
SECONDS_AN_IMAGE = {1: 0.012, 2: 0.009, 4: 0.007, 8: 0.0061, 16: 0.006, 32: 0.0061}
ENCODER = {size: Run(size * each, GB // 2 + size * GB // 2) for size, each in SECONDS_AN_IMAGE.items()}
DECODER = {size: Run(0.004 + 0.0005 * size, size * 27_000_000) for size in (1, 2, 4, 8, 16, 32)}


def on_a_card(gigabytes: float, encoder: Mapping[int, Run] = ENCODER, **more: Any) -> Measured:
    measured = Measured(
        model_id=LARGE,
        on_gpu=True,
        cores=16,
        memory_bytes=int(gigabytes * GB),
        context_bytes=500_000_000,
        weights_bytes=500_000_000,
        embedding_bytes=8_388_608,
        default_cache_bytes=None,
        encoder=encoder,
        decoder=DECODER,
        parse_s=0.015,
        encode_s={"json": 0.3, "rle": 0.03},
        answer_bytes={"json": 67_000_000, "rle": 8_000},
    )
    return replace(measured, **more)


def on_a_cpu(**more: Any) -> Measured:
    runs = {1: Run(0.6, 200_000_000), 2: Run(1.2, 400_000_000), 4: Run(2.3, 800_000_000)}
    return replace(
        on_a_card(20, runs),
        on_gpu=False,
        cores=2,
        model_id="sam2-demo",
        decoder={1: Run(0.08, 40_000_000), 2: Run(0.15, 80_000_000), 4: Run(0.29, 160_000_000)},
        default_cache_bytes=2 * 2**30,
        **more,
    )


# ---- sizes


def test_the_smallest_batch_near_the_best_throughput_is_taken() -> None:
    assert best_size(ENCODER) == 8
    assert best_size({1: Run(0.1, 0), 2: Run(0.2, 0)}) == 1
    assert best_size({1: Run(0.1, 0), 2: Run(0.18, 0)}) == 2


def test_sizes_grow_until_two_in_a_row_bring_nothing() -> None:
    assert worth_growing([1.0, 1.0])
    assert worth_growing([1.0, 1.0, 1.1])
    assert worth_growing([1.0, 1.1, 1.0])
    assert not worth_growing([1.0, 1.04, 1.0])


@pytest.mark.parametrize("replicas", range(1, 17))
def test_shares_are_rounded_so_that_all_of_them_fit_on_one_gpu(replicas: int) -> None:
    # As Ray counts: in ten thousandths.
    assert round(share(replicas) * 10_000) * replicas <= 10_000
    assert share(replicas) == pytest.approx(1 / replicas, abs=1e-4)


def test_three_replicas_get_a_third_each() -> None:
    assert share(3) == 0.3333


# ---- proposals


def test_on_an_80_gb_card_two_replicas_share_it_at_full_speed() -> None:
    proposal = propose(on_a_card(80))
    assert (proposal.num_gpus, proposal.replicas_a_device, proposal.max_batch_size) == (0.5, 2, 8)
    assert proposal.target_ongoing_requests == 8
    assert proposal.max_ongoing_requests == 4 * (8 + 32)
    # What is left of half a card, less context and spare room: beside weights, 8 images, and 32 objects.
    left = (40e9 - 0.5e9) * (1 - SPARE) - 0.5e9 - 4.5e9 - 32 * 27e6
    assert proposal.cache_bytes == pytest.approx(left, abs=1e6)
    assert proposal.remembered == proposal.cache_bytes // 8_388_608


@pytest.mark.parametrize("gigabytes", [16, 24, 40, 80, 141])
@pytest.mark.parametrize("most_replicas", [1, 2, 3, 4])
def test_what_is_proposed_fits_into_its_share(gigabytes: float, most_replicas: int) -> None:
    measured = on_a_card(gigabytes)
    proposal = propose(measured, most_replicas)
    needed = measured.weights_bytes + ENCODER[proposal.max_batch_size].memory_bytes + 32 * 27e6 + proposal.cache_bytes
    assert needed / (1 - SPARE) + measured.context_bytes <= proposal.num_gpus * measured.memory_bytes + 2
    assert proposal.num_gpus * proposal.replicas_a_device <= 1
    assert proposal.remembered >= 64


def test_on_a_16_gb_card_two_replicas_still_have_the_batch_of_eight() -> None:
    assert propose(on_a_card(16)).max_batch_size == 8
    assert propose(on_a_card(16)).num_gpus == 0.5


def test_a_replica_gets_a_card_of_its_own_where_half_of_it_would_make_batches_slower() -> None:
    # Half of 12 GB holds no more than three images at a time, a whole one eight.
    proposal = propose(on_a_card(12))
    assert (proposal.num_gpus, proposal.replicas_a_device, proposal.max_batch_size) == (1.0, 1, 8)


def test_a_batch_that_does_not_fit_is_not_proposed() -> None:
    proposal = propose(on_a_card(6))
    assert proposal.num_gpus == 1.0
    assert proposal.max_batch_size == 4
    assert ENCODER[8].memory_bytes + 500_000_000 + 32 * 27_000_000 > (6 * GB - 500_000_000) * (1 - SPARE) - 64 * 8.4e6


def test_runs_that_the_card_could_not_take_are_not_missed() -> None:
    measured = on_a_card(80, {size: run for size, run in ENCODER.items() if size <= 2})
    assert propose(measured).max_batch_size == 2


def test_a_card_that_is_too_small_is_said_to_be() -> None:
    with pytest.raises(DoesNotFit, match="too small for an image at a time"):
        propose(on_a_card(2))


def test_the_smallest_share_for_a_model_that_is_rarely_used() -> None:
    # An image at a time: context 0.5, and 0.5 + 1 + 0.9 + 0.5 GB in nine tenths of the rest.
    assert propose(on_a_card(80)).smallest_share == share(16)
    assert propose(on_a_card(16)).smallest_share == share(4)


def test_large_batches_get_places_for_the_next_ones() -> None:
    seconds = {64: 0.1, 32: 0.1, 1: 0.1}
    measured = on_a_card(80, {size: Run(each, GB) for size, each in seconds.items()})
    proposal = propose(measured)
    assert proposal.max_batch_size == 64
    assert proposal.max_ongoing_requests == 4 * (64 + proposal.max_decode_batch_size)


def test_on_a_cpu_images_take_turns_and_the_cache_leaves_memory_to_others() -> None:
    proposal = propose(on_a_cpu())
    assert (proposal.num_gpus, proposal.replicas_a_device, proposal.max_batch_size) == (0, 1, 1)
    assert proposal.cache_bytes == 2 * 2**30 // 10**6 * 10**6
    assert proposal.target_ongoing_requests == 2


# ---- plans


def test_a_plan_for_new_images() -> None:
    measured = on_a_card(80)
    proposal = propose(measured)
    planned = plan(measured, proposal, Load(100, response_format="rle", utilisation=0.65))
    busy = 100 * 0.0061 + 100 * proposal.seconds_a_prompt
    assert planned.busy == pytest.approx(busy)
    assert planned.devices == 2
    assert planned.replicas == 2 * proposal.replicas_a_device
    # 100 × (0.015 + 0.02) ÷ 0.65 = 5.4, and 100 × 0.03 ÷ 0.65 = 4.6.
    assert (planned.parsers, planned.encoders) == (6, 5)
    assert planned.processors == 6 + 5 + planned.replicas
    assert planned.gigabits_per_second == pytest.approx(100 * 8_000 * 8 / 1e9)


def test_remembered_images_cost_no_run_of_the_encoder() -> None:
    measured = on_a_card(80)
    proposal = propose(measured)
    load = Load(1000, hit_rate=1.0, prompts_per_image=2)
    assert plan(measured, proposal, load).busy == pytest.approx(2000 * proposal.seconds_a_prompt)


def test_the_default_format_takes_more_processors_than_the_small_ones() -> None:
    measured = on_a_card(80)
    json, rle = (plan(measured, propose(measured), Load(10, response_format=form)) for form in ("json", "rle"))
    assert json.devices == rle.devices
    assert json.encoders > rle.encoders
    assert json.parsers > rle.parsers


def test_without_a_gpu_the_model_and_all_else_share_machines() -> None:
    measured = on_a_cpu()
    small = plan(measured, propose(measured), Load(0.5, response_format="rle"))
    assert (small.machines, small.replicas) == (1, 1)
    # The model alone is busy 1.9 of 2 machines' 65 %; the answers' text then takes a third one.
    large = plan(measured, propose(measured), Load(1.85, response_format="json"))
    assert (large.replicas, large.machines) == (2, 3)


def test_the_cost_of_a_million_images() -> None:
    # 10^6 images at 100 a second are 10^4 seconds of two GPUs.
    assert cost_of_a_million(2, 100, 3.6) == pytest.approx(20.0)


# ---- the config file


def entries_of(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The entries by name, once the service and Ray have accepted them."""
    for entry in document["deployments"]:
        DeploymentSchema.model_validate(entry)
        AutoscalingConfig.model_validate(entry["autoscaling_config"])
        if entry["name"].startswith("Sam2Model:"):
            Sam2ModelConfig.model_validate(entry["user_config"])
    return {entry["name"]: entry for entry in document["deployments"]}


def test_a_fragment_keeps_what_the_config_file_says_besides() -> None:
    measured = on_a_card(80)
    application = tune._application(Path("serve_config.yaml"))
    entries = {entry["name"]: entry for entry in application["deployments"]}
    document = fragment(measured, propose(measured), None, entries)
    assert "Checked" in check(document)
    entry = entries_of(document)[f"Sam2Model:{LARGE}"]
    assert entry["ray_actor_options"] == {"num_cpus": 0, "num_gpus": 0.5}
    assert entry["autoscaling_config"] == {"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 8}
    assert entry["user_config"]["batch_wait_timeout_s"] == 0.01
    assert entry["user_config"]["max_batch_size"] == 8
    planned = fragment(measured, propose(measured), plan(measured, propose(measured), Load(1000)), entries)
    assert entries_of(planned)[f"Sam2Model:{LARGE}"]["autoscaling_config"]["max_replicas"] > 4
    # The file's own were not touched.
    assert entries[f"Sam2Model:{LARGE}"]["autoscaling_config"]["max_replicas"] == 4


def test_a_plan_scales_parsers_and_encoders_too() -> None:
    measured = on_a_card(80)
    proposal = propose(measured)
    planned = plan(measured, proposal, Load(100))
    entries = entries_of(fragment(measured, proposal, planned, {}))
    assert entries["RequestParser"]["autoscaling_config"]["max_replicas"] == planned.parsers
    assert entries["RequestParser"]["ray_actor_options"] == {"num_cpus": 1, "runtime_env": app.FLOW_CONTROL}
    assert entries["ResponseEncoder"]["autoscaling_config"]["max_replicas"] == planned.encoders
    assert entries[f"Sam2Model:{LARGE}"]["autoscaling_config"]["max_replicas"] == planned.replicas


@pytest.mark.parametrize(("rate", "num_cpus"), [(0.5, 0), (20, 2)])
def test_without_a_gpu_processors_are_reserved_only_on_more_machines_than_one(rate: float, num_cpus: int) -> None:
    measured = on_a_cpu()
    proposal = propose(measured)
    entries = entries_of(fragment(measured, proposal, plan(measured, proposal, Load(rate, response_format="rle")), {}))
    options = entries["Sam2Model:sam2-demo"]["ray_actor_options"]
    assert options == {"num_cpus": num_cpus, "runtime_env": app.KEEP_FREED_MEMORY}
    assert entries["RequestParser"]["ray_actor_options"]["num_cpus"] == min(num_cpus, 1)


@pytest.mark.parametrize("measured", [on_a_card(80), on_a_cpu()])
def test_every_table_has_a_cell_for_each_column(measured: Measured) -> None:
    proposal, load = propose(measured), Load(100, 0.5, 3, "rle")
    tables = [
        *measured_tables(measured),
        proposal_table(measured, proposal),
        plan_table(measured, load, plan(measured, proposal, load), 2.5),
    ]
    assert all(len(line) == len(table.columns) for table in tables for line in table.lines)
    text = str(tables)
    assert ("GPUs" in text) == measured.on_gpu
    assert "cost of a million images" in text


# ---- measuring


def test_memory_that_a_call_takes_only_meanwhile_is_seen() -> None:
    taken = 100 * 2**20

    def call() -> None:
        # Zeros alone would take no memory before they are read.
        assert torch.ones(taken // 4).sum() > 0

    assert 0.9 * taken < measuring.peak_bytes(torch.device("cpu"), call) < 2 * taken


def test_the_tool_measures_the_bundled_model_and_proposes_what_ray_and_the_service_accept(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # It would otherwise start itself anew, since malloc reads these when a process starts.
    for name, value in tune._kept_memory().items():
        monkeypatch.setenv(name, value)
    few = ["--largest-batch", "1", "--repeats", "1", "--images-per-second", "0.1", "--response-format", "rle"]
    assert tune.main(["--config", "cluster/local.yaml", "--model", "sam2-demo", *few]) == 0
    printed = capsys.readouterr().out
    document = yaml.safe_load(printed.split("```yaml\n")[1].split("```")[0])
    model = entries_of(document)["Sam2Model:sam2-demo"]
    assert model["user_config"]["max_batch_size"] == 1
    assert Sam2ModelConfig.model_validate(model["user_config"]).cache_bytes
    assert all(f"| {form} |" in printed for form in RESPONSE_FORMATS)
    assert "Checked: the service's settings and Ray Serve's schema accept it." in printed


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--config", "pyproject.toml"], "is no Ray Serve config file"),
        (["--config", "cluster/local.yaml", "--model", "acme/unknown"], "acme/unknown: is not among"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_line(
    arguments: list[str], cause: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune.main(arguments) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert cause in line
