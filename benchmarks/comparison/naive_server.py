"""The plain way to serve SAM 2, as anyone would write it: FastAPI around SAM2ImagePredictor, one process.

The same route, fields and answer as the service. Nothing in it is slow on purpose: the predictor is loaded once, a lock
keeps its state whole, and the handler is a plain function, which FastAPI runs in a thread.
"""

import argparse
import io
import json
from threading import Lock
from typing import Annotated, Any

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, File, Form, UploadFile
from PIL import Image
from sam2.sam2_image_predictor import SAM2ImagePredictor


def build_app(predictor: SAM2ImagePredictor) -> FastAPI:
    """The application."""
    app = FastAPI()
    lock = Lock()

    @app.get("/ready")
    def ready() -> dict[str, str]:
        return {"status": "READY"}

    @app.post("/segment-anything-2")
    def segment(
        image: Annotated[UploadFile, File()],
        model_id: Annotated[str, Form()] = "",  # there is one model here
        point_coords: Annotated[str | None, Form()] = None,
        point_labels: Annotated[str | None, Form()] = None,
        box: Annotated[str | None, Form()] = None,
        mask_input: Annotated[str | None, Form()] = None,
        multimask_output: Annotated[bool, Form()] = True,
        return_logits: Annotated[bool, Form()] = True,
        normalize_coords: Annotated[bool, Form()] = True,
    ) -> dict[str, str]:
        pixels = np.array(Image.open(io.BytesIO(image.file.read())).convert("RGB"))
        with lock, torch.inference_mode():
            predictor.set_image(pixels)
            masks, scores, logits = predictor.predict(
                point_coords=_array(point_coords),
                point_labels=_array(point_labels),
                box=_array(box),
                mask_input=_array(mask_input),
                multimask_output=multimask_output,
                return_logits=return_logits,
                normalize_coords=normalize_coords,
            )
        order = np.argsort(scores)[::-1]
        return {
            "masks": str(masks[order].tolist()),
            "scores": str(scores[order].tolist()),
            "logits": str(logits[order].tolist()),
        }

    return app


def _array(text: str | None) -> Any:
    return np.array(json.loads(text)) if text else None


def main() -> None:
    """Serves until it is stopped."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.comparison.naive_server", description=__doc__)
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--model-id", default="facebook/sam2-hiera-tiny")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    predictor = SAM2ImagePredictor.from_pretrained(options.model_id, device=device)
    uvicorn.run(build_app(predictor), host="127.0.0.1", port=options.port, log_level="warning", workers=1)


if __name__ == "__main__":
    main()
