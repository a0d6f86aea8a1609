"""Tables as Markdown, and those that `python -m tuning` prints."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tuning.capacity import Load, Measured, Plan, Proposal, Run, cost_of_a_million, throughput


@dataclass(frozen=True)
class Table:
    """A title, the names of the columns, and the cells of each line."""

    title: str
    columns: Sequence[str]
    lines: Sequence[Sequence[str]]


def table_lines(table: Table) -> Iterator[str]:
    """A table as Markdown."""
    yield f"\n## {table.title}\n"
    yield _line(table.columns)
    yield "|---" * len(table.columns) + "|"
    yield from map(_line, table.lines)


def _line(cells: Sequence[str]) -> str:
    # A bar in a cause would end its cell.
    return "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |"


def measured_tables(measured: Measured) -> list[Table]:
    """Memory, runs of the model, and what the other deployments do on a processor."""
    memory = {
        "GPU" if measured.on_gpu else "available to the replica": measured.memory_bytes,
        "CUDA context" if measured.on_gpu else "Python and libraries": measured.context_bytes,
        "weights": measured.weights_bytes,
        "an embedding": measured.embedding_bytes,
    }
    answers = [
        [form, _milliseconds(seconds), _bytes(measured.answer_bytes[form])]
        for form, seconds in measured.encode_s.items()
    ]
    return [
        Table(
            f"{measured.model_id}: memory", ("what", "takes"), [[what, _bytes(size)] for what, size in memory.items()]
        ),
        Table(
            "Runs of the model",
            ("in one run", "ms for each", "a second", "memory beside the weights"),
            [*_run_lines("images", measured.encoder), *_run_lines("prompts", measured.decoder)],
        ),
        Table(
            "1080p on one processor",
            ("what", "ms", "size"),
            [["a JPEG, read", _milliseconds(measured.parse_s), ""], *answers],
        ),
    ]


def proposal_table(measured: Measured, proposal: Proposal) -> Table:
    """The settings."""
    each = {"image": proposal.seconds_an_image, "prompt": proposal.seconds_a_prompt}
    image, prompt = (f"{_milliseconds(seconds)} ms for each {what}" for what, seconds in each.items())
    lines = [
        ["max_batch_size", str(proposal.max_batch_size), image],
        ["max_decode_batch_size", str(proposal.max_decode_batch_size), prompt],
        ["cache_bytes", str(proposal.cache_bytes), f"remembers {proposal.remembered:,} images"],
        ["target_ongoing_requests", str(proposal.target_ongoing_requests), "keeps a batch at work"],
        ["max_ongoing_requests", str(proposal.max_ongoing_requests), "most of them wait"],
    ]
    if measured.on_gpu:
        rare = f"{proposal.smallest_share:g} would do for a model that is rarely used"
        lines.insert(0, ["num_gpus", f"{proposal.num_gpus:g}", f"replicas a GPU: {proposal.replicas_a_device}; {rare}"])
    return Table("Proposed", ("setting", "value", "what it does"), lines)


def plan_table(measured: Measured, load: Load, planned: Plan, price: float | None) -> Table:
    """What a load takes; what it costs, if the price of a device is known."""
    device, count = ("GPUs", planned.devices)
    if planned.machines is not None:
        device, count = f"machines of {measured.cores} processors", planned.machines
    lines = [
        [device, str(count), f"the model keeps {planned.busy:.3g} of them busy"],
        ["replicas of the model", str(planned.replicas), ""],
        ["replicas of RequestParser", str(planned.parsers), "a processor each"],
        ["replicas of ResponseEncoder", str(planned.encoders), "a processor each"],
        ["to clients", f"{1000 * planned.gigabits_per_second:,.3g} Mbit/s", f"response_format={load.response_format}"],
    ]
    if measured.on_gpu:
        lines.insert(4, ["processors", str(planned.processors), "of all replicas"])
    if price is not None:
        cost = cost_of_a_million(count, load.images_per_second, price)
        lines.append(["cost of a million images", f"{cost:,.2f}", f"{device} at {price:g} an hour"])
    title = (
        f"{load.images_per_second:g} images a second, {load.prompts_per_image:g} prompts each, "
        f"{100 * load.hit_rate:g} % remembered, utilisation {load.utilisation:g}"
    )
    return Table(title, ("what", "how much", "note"), lines)


def _run_lines(what: str, runs: Mapping[int, Run]) -> list[list[str]]:
    return [
        [f"{size} {what}", _milliseconds(run.seconds / size), f"{throughput(runs)[size]:.3g}", _bytes(run.memory_bytes)]
        for size, run in runs.items()
    ]


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g}" if seconds < 1 else f"{1000 * seconds:,.0f}"


def _bytes(count: float) -> str:
    return f"{count / 1e6:,.0f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"
