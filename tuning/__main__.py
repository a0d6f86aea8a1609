"""`python -m tuning`: measures a model on the machine that will serve it, and proposes its settings.

Prints what it measured, `deployments` for the Ray Serve config file and, with --images-per-second, what such a load
takes; the formulas are in tuning/capacity.py. It starts no Ray. Stop the service first: whatever else the machine
does meanwhile is measured too.
"""

import argparse
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml

from deployments.environment import has_nvidia_gpu
from deployments.errors import ModelLoadError, Overloaded
from deployments.messages.answer_format import RESPONSE_FORMATS
from deployments.settings import ModelSettings, parse_settings
from tuning.capacity import DoesNotFit, Load, plan, propose
from tuning.fragment import ROOT, check, fragment, model_options
from tuning.hardware import describe, summary
from tuning.measuring import Effort, measure
from tuning.tables import Table, measured_tables, plan_table, proposal_table, table_lines

BUSY = 0.5
"""A load average at the start from which on the figures are doubtful."""


def main(argv: list[str] | None = None) -> int:
    """Measures and prints; returns 0, or 1 with a line on standard error that says why not."""
    argv = sys.argv[1:] if argv is None else argv
    options = _options(argv)
    try:
        application = _application(options.config)
        settings = _model(application, options.model)
        if not _on_gpu(settings) and not _kept_memory().items() <= os.environ.items():
            _start_again_with_kept_memory(argv)
        _say_head()
        measured = measure(settings, Effort(options.repeats, options.largest_batch), _say)
        proposal = propose(measured, options.replicas_per_gpu)
        _print([*measured_tables(measured), proposal_table(measured, proposal)])
        load = _load(options)
        planned = plan(measured, proposal, load) if load else None
        if load and planned:
            _print([plan_table(measured, load, planned, options.gpu_price_per_hour)])
        entries = {entry["name"]: entry for entry in application.get("deployments", [])}
        _print_fragment(fragment(measured, proposal, planned, entries))
    except (OSError, ValueError, ModelLoadError, Overloaded, DoesNotFit) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tuning", description=__doc__)
    default = "serve_config.yaml with a GPU, else cluster/local.yaml"
    parser.add_argument("--config", type=Path, help=f"the Ray Serve config file; default: {default}")
    parser.add_argument("--model", metavar="ID", help="one of its models; default: its default model")
    parser.add_argument("--replicas-per-gpu", type=int, choices=range(1, 17), default=2, metavar="N", help="default: 2")
    parser.add_argument("--repeats", type=_count, default=3, metavar="N", help="runs of each size; default: 3")
    parser.add_argument("--largest-batch", type=_count, default=64, metavar="N", help="images; default: 64")
    planning = parser.add_argument_group("a plan for a load")
    planning.add_argument("--images-per-second", type=_positive, metavar="R")
    planning.add_argument("--hit-rate", type=_share, default=0.0, metavar="H", help="share remembered; default: 0")
    planning.add_argument("--prompts-per-image", type=_positive, default=1.0, metavar="P", help="default: 1")
    planning.add_argument("--response-format", choices=RESPONSE_FORMATS, default="json", help="default: json")
    planning.add_argument("--utilisation", type=_share, default=0.65, metavar="U", help="of devices; default: 0.65")
    planning.add_argument("--gpu-price-per-hour", type=_positive, metavar="PRICE", help="without a GPU: the machine's")
    return parser.parse_args(argv)


def _positive(text: str) -> float:
    if not (value := float(text)) > 0:
        raise argparse.ArgumentTypeError("must be above 0")
    return value


def _share(text: str) -> float:
    if not 0 <= (value := float(text)) <= 1:
        raise argparse.ArgumentTypeError("must be from 0 to 1")
    return value


def _count(text: str) -> int:
    if not 1 <= (value := int(text)) <= 256:
        raise argparse.ArgumentTypeError("must be from 1 to 256")
    return value


def _load(options: argparse.Namespace) -> Load | None:
    """What is to be planned for, if anything."""
    if options.images_per_second is None:
        return None
    return Load(
        images_per_second=options.images_per_second,
        hit_rate=options.hit_rate,
        prompts_per_image=options.prompts_per_image,
        response_format=options.response_format,
        utilisation=options.utilisation,
    )


def _application(config: Path | None) -> dict[str, Any]:
    """The config file's application; by default that of the file that the launcher takes on this machine."""
    path = config or ROOT / ("serve_config.yaml" if has_nvidia_gpu() else "cluster/local.yaml")
    try:
        [application] = yaml.safe_load(path.read_text())["applications"]
        return dict(application)
    except (yaml.YAMLError, TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: is no Ray Serve config file with one application") from error


def _model(application: dict[str, Any], model_id: str | None) -> ModelSettings:
    settings = parse_settings(application.get("args", {}))
    models = {model.model_id: model for model in settings.models}
    if (wanted := model_id or settings.default_model_id) not in models:
        raise ValueError(f"{wanted}: is not among the config file's models: {', '.join(models)}")
    return models[wanted]


def _on_gpu(settings: ModelSettings) -> bool:
    return settings.device != "cpu" and torch.cuda.is_available()


def _kept_memory() -> dict[str, str]:
    """The environment that models have on a CPU."""
    return dict(model_options()["runtime_env"]["env_vars"])


def _start_again_with_kept_memory(argv: list[str]) -> NoReturn:
    # malloc reads its settings when a process starts.
    command = [sys.executable, "-m", "tuning", *argv]
    os.execve(sys.executable, command, {**os.environ, **_kept_memory()})


# ---- what is printed


def _say(line: str) -> None:
    """Progress; what is printed for good goes to standard output."""
    print(line, file=sys.stderr, flush=True)


def _say_head() -> None:
    hardware = describe()
    print(f"# {summary(hardware)}", flush=True)
    if hardware["load_average_at_start"] > BUSY:
        _say(f"warning: load average {hardware['load_average_at_start']:.1f}; figures will be doubtful")


def _print(tables: Iterable[Table]) -> None:
    print("\n".join(line for table in tables for line in table_lines(table)), flush=True)


def _print_fragment(document: dict[str, list[dict[str, Any]]]) -> None:
    checked = check(document)
    text = yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=110)
    print(f"\n## To paste over the config file's entries of these names\n\n```yaml\n{text}```\n\n{checked}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
