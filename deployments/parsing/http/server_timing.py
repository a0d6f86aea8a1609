"""The `Server-Timing` header (W3C Server Timing): where a request's time went, in milliseconds."""

from deployments.parsing.stage_times import StageTimes

HEADER = "Server-Timing"


def server_timing(times: StageTimes) -> str:
    """Returns the header's value, such as `parse;dur=3.1, queue;dur=2.0, …, cache;desc="hit"`."""
    durations = [f"{name};dur={seconds * 1000:.1f}" for name, seconds in times.seconds().items()]
    return ", ".join([*durations, *([f'cache;desc="{times.cache}"'] if times.cache else [])])
