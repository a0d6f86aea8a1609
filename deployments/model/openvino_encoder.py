"""The image encoder in OpenVINO: converted by a process of its own, kept on disk, tried, then used in torch's place."""

import fcntl
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sam2.modeling.sam2_base import SAM2Base

from deployments.machine import available_memory
from deployments.model import image_encoder
from deployments.model.checkpoints import load_model, locate
from deployments.model.devices import multiplies_bfloat16
from deployments.model.engine import Encode, Engine
from deployments.model.image_encoder import HieraEncoder, is_hiera
from deployments.settings import ModelSettings

CONVERSION_TIMEOUT_S = 1800.0
"""The conversion takes about 20 s on two cores that are idle, and gives way to all other work."""

MEMORY_PER_WEIGHT_BYTE, MEMORY_BYTES = 4, 2**30
"""What the conversion may take, as a multiple of the checkpoint and besides: weights as they were loaded, as they are
exported, and converted."""

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.05}
"""How far a feature map may be from torch's: the norm of the difference over the map's norm.

In bfloat16 the two round differently. On the bundled model, torch's maps in bfloat16 are 0.004 to 0.009 from those in
float32; deeper models round more often.
"""

ROOT = str(Path(__file__).parents[2])

# A process that imports nothing of the caller's main module, which in a Ray worker is Ray's. Some of SAM 2's parts ask
# for a GPU when they are built, and would hold memory there.
PROGRAM = (
    "import os, sys; os.environ['CUDA_VISIBLE_DEVICES'] = ''; sys.path.insert(0, sys.argv[1]); "
    "from deployments.model.openvino_encoder import convert; convert(sys.argv[2], sys.argv[3])"
)

logger = logging.getLogger("ray.serve")


class EncoderRefused(Exception):
    """OpenVINO cannot take the place of torch for this model, or on this device; the message says why."""


class OpenVinoEncoder:
    """A converted image encoder. One thread may call it at a time.

    Args:
        file: the converted encoder's `.xml`, with its weights beside it.
        precision: dtype that it computes in, where the processor can.
        threads: number of threads.
    """

    def __init__(self, file: Path, precision: torch.dtype, threads: int) -> None:
        compiled = (
            _openvino()
            .Core()
            .compile_model(
                file,
                "CPU",
                {
                    "INFERENCE_PRECISION_HINT": "bf16" if precision == torch.bfloat16 else "f32",
                    "INFERENCE_NUM_THREADS": threads,
                    "PERFORMANCE_HINT": "LATENCY",
                    # Threads that are bound to cores would share the first ones with those of every other replica.
                    "ENABLE_CPU_PINNING": False,
                },
            )
        )
        self._run = compiled.create_infer_request()

    def __call__(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Returns feature maps as HieraEncoder does, in float32. Runs image by image: larger runs are no faster.

        Args:
            pixels: `B×3×S×S`, normalised.
        """
        runs = [self._run.infer({0: one.numpy()[None]}) for one in pixels.float()]
        maps = zip(*([run[index] for index in range(len(run))] for run in runs), strict=True)
        return [torch.from_numpy(np.concatenate(level)) for level in maps]


def is_installed() -> bool:
    """Returns whether the package is there, which the extra `openvino` installs."""
    return find_spec("openvino") is not None


def pays(device: torch.device, precision: torch.dtype) -> bool:
    """Returns whether OpenVINO is known to be faster here: in bfloat16, on processors that have it.

    In float32 it is not (docs/performance.md).
    """
    return device.type == "cpu" and precision == torch.bfloat16 and multiplies_bfloat16(device)


def switch_in_background(settings: ModelSettings, engine: Engine, switched: Callable[[str], None]) -> None:
    """Hands the engine's image encoder over to OpenVINO, where the settings say so, once that is ready and tried.

    The engine answers with torch meanwhile. Whatever goes wrong is logged once, and torch stays.

    Args:
        settings: of the model.
        engine: already in use.
        switched: called with the new backend's name.
    """
    wanted = settings.encoder_backend
    if wanted == "auto":
        wanted = "openvino" if is_installed() and pays(engine.device, engine.precision) else "torch"
    if wanted != "openvino" or (settings.encoder_backend == "auto" and settings.torch_compile):
        return

    def switch() -> None:
        try:
            found = tried(engine, prepared(settings, engine))
            engine.use_encoder(_or_torch(found, engine, switched), "openvino")
        # Also what OpenVINO raises, whose classes are known only where it is installed.
        except Exception as error:
            cause = " ".join(str(error).split())[:400]
            logger.warning("%s: the image encoder stays on torch: %s", settings.model_id, cause)
        else:
            logger.info("%s: the image encoder now runs in OpenVINO", settings.model_id)
            switched("openvino")

    threading.Thread(target=switch, name="encoder-switch", daemon=True).start()


def _or_torch(encode: Encode, engine: Engine, switched: Callable[[str], None]) -> Encode:
    """Returns the encoder, which at its first error gives way to the engine's present one."""
    former = engine.encode

    def encode_or_give_way(pixels: torch.Tensor) -> list[torch.Tensor]:
        try:
            return encode(pixels)
        # OpenVINO's own errors are RuntimeErrors.
        except RuntimeError:
            logger.exception("the image encoder goes back to torch")
            engine.use_encoder(former, "torch")
            switched("torch")
            return former(pixels)

    return encode_or_give_way


def prepared(settings: ModelSettings, engine: Engine) -> OpenVinoEncoder:
    """Loads the model's image encoder; converts it if that has not been done before.

    Raises:
        EncoderRefused: OpenVINO is missing, or does not suit the device or the model; or the conversion failed.
        ModelLoadError: the checkpoint is gone.
        OSError: the cache folder cannot be written.
    """
    if engine.device.type != "cpu":
        raise EncoderRefused(f"encoder_backend: openvino is for processors, and the model runs on {engine.device.type}")
    if not is_installed():
        raise EncoderRefused("encoder_backend: openvino is not installed; install segment-anything-2-serve[openvino]")
    if not is_hiera(engine.model):
        raise EncoderRefused("encoder_backend: openvino takes Hiera with Meta's neck alone")
    folder = (settings.encoder_cache or Path.home() / ".cache" / "segment-anything-2-serve") / _key(settings)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Of several replicas on a node, one converts, and the others wait for it.
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            _convert_elsewhere(settings, folder)
        try:
            return OpenVinoEncoder(folder / "encoder.xml", engine.precision, torch.get_num_threads())
        except MemoryError:
            raise
        except Exception:
            # Files that cannot be read are not left to the next replica.
            shutil.rmtree(folder, ignore_errors=True)
            raise


def tried(engine: Engine, encode: Callable[[torch.Tensor], list[torch.Tensor]]) -> Any:
    """Returns the encoder, if it makes of a picture what the engine's makes.

    Raises:
        EncoderRefused: it does not.
    """
    picture = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    with torch.inference_mode():
        expected, found = (engine.feature_maps([picture], encoder) for encoder in (None, encode))
    tolerance = TOLERANCES[engine.precision]
    if [one.shape for one in found] != [one.shape for one in expected]:
        raise EncoderRefused("OpenVINO's feature maps have other shapes than torch's")
    for one, other in zip(found, expected, strict=True):
        distance = float((one.float() - other.float()).norm() / other.float().norm())
        # Not `>`: a distance that is no number is too large as well.
        if not distance <= tolerance:
            raise EncoderRefused(f"OpenVINO's feature maps are {distance:.3g} from torch's, more than {tolerance:g}")
    return encode


def convert(settings: str, folder: str) -> None:
    """Converts a model's image encoder; the program of the process that `prepared` starts.

    Args:
        settings: ModelSettings as JSON.
        folder: where `convert_model` writes.
    """
    threading.Thread(target=_end_with_the_caller, daemon=True).start()
    os.nice(19)
    # If memory runs out, this process is to go, not the replica.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    torch.set_num_threads(1)
    convert_model(load_model(ModelSettings.model_validate_json(settings), lambda *_: None), Path(folder))


def convert_model(model: SAM2Base, folder: Path) -> None:
    """Writes a model's image encoder as `encoder.xml` and `encoder.bin`, in float32: 109 MB for hiera-tiny.

    Args:
        model: a model that `is_hiera`, in evaluation mode and float32.
        folder: where to write.
    """
    openvino = _openvino()
    example = (torch.zeros(1, 3, model.image_size, model.image_size),)
    with torch.no_grad():
        exported = torch.export.export(HieraEncoder(model, fused=False).eval(), example)
        converted = openvino.convert_model(exported, example_input=example)
    openvino.save_model(converted, folder / "encoder.xml", compress_to_fp16=False)


def _end_with_the_caller() -> None:
    """Ends this process when the other end of its standard input is closed, by whatever death of the caller."""
    # Not by way of sys.stdin, whose lock would be held when Python ends.
    os.read(0, 1)
    os._exit(1)


def _convert_elsewhere(settings: ModelSettings, folder: Path) -> None:
    """Converts in a process of its own: seconds of Python would delay requests here, and its memory would be kept."""
    _, checkpoint = locate(settings, lambda *_: None)
    needed, available = MEMORY_PER_WEIGHT_BYTE * checkpoint.stat().st_size + MEMORY_BYTES, available_memory()
    if available < needed:
        raise EncoderRefused(
            f"the conversion needs {needed / 1e9:.1f} GB of memory, and {available / 1e9:.1f} GB are free"
        )
    prefix = f"converting-{folder.name}-"
    # Of replicas that were killed.
    for left in folder.parent.glob(f"{prefix}*"):
        shutil.rmtree(left, ignore_errors=True)
    part = tempfile.mkdtemp(prefix=prefix, dir=folder.parent)
    reading, writing = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, ROOT, settings.model_dump_json(), part],
            stdin=reading,
            capture_output=True,
            timeout=CONVERSION_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            raise EncoderRefused(f"the conversion failed with exit code {done.returncode}: {last}")
        for file in Path(part).iterdir():
            with file.open("rb") as written:
                os.fsync(written)
        # All of it appears at once, or nothing, and after a power cut too.
        Path(part).rename(folder)
    finally:
        os.close(writing)
        os.close(reading)
        with suppress(FileNotFoundError):
            shutil.rmtree(part)


def _key(settings: ModelSettings) -> str:
    """Names what a conversion is made of: configuration, checkpoint, the code of the encoder, versions of libraries."""
    made_of = hashlib.sha256()
    for file in (*locate(settings, lambda *_: None), Path(image_encoder.__file__)):
        with file.open("rb") as opened:
            made_of.update(hashlib.file_digest(opened, "sha256").digest())
    made_of.update(f"torch {torch.__version__}, openvino {version('openvino')}".encode())
    return made_of.hexdigest()


def _openvino() -> Any:
    # When it is imported, OpenVINO reports to its makers, by way of this package. Without the package it does not.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return import_module("openvino")
