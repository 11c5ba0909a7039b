"""The weights of the site's live model: the bundled GPT-2's, as a script that a page can load.

The reader's browser computes the model itself, in `assets/model.js`. A page opened from a disk may not fetch a file,
but it may run a script beside it; so the weights travel as one.
"""

import base64
import dataclasses
import json

from torch import Tensor

from allformers.models.gpt2.gpt2 import GPT2


def weights_script() -> str:
    """Return the bundled model as a classic script: `allformers.weights = {config, tensors}`.

    The weights travel in half precision, which halves the download; the comparison of `model.js` with Python is on
    the same rounded weights. The unembedding is tied to the token embedding and so is written once.
    """
    model = GPT2.from_pretrained("bundled")
    tensors = {
        name: {"shape": list(parameter.shape), "data": _base64_float16(parameter)}
        for name, parameter in model.named_parameters()  # which names a tied tensor once
    }
    weights = json.dumps({"config": dataclasses.asdict(model.config), "tensors": tensors}, separators=(",", ":"))
    return (
        "// The weights of allformers' bundled GPT-2: float16, little-endian, in base64. Load model.js first.\n"
        f"allformers.weights = {weights};\n"
    )


def _base64_float16(tensor: Tensor) -> str:
    return base64.b64encode(tensor.detach().half().numpy().astype("<f2").tobytes()).decode("ascii")
