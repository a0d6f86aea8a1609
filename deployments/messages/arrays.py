"""The arrays that messages hold, and the constants of SAM 2 that their shapes and values follow."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float32]
IntArray: TypeAlias = NDArray[np.int32]
RgbArray: TypeAlias = NDArray[np.uint8]

LOW_RES_SIZE = 256
"""Height and width of SAM 2's low-resolution logits, and of `mask_input`."""

LOGIT_LIMIT = 32.0
"""SAM 2 returns low-resolution logits clamped to ±32; full-size masks come from the unclamped ones."""
