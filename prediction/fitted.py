"""What was fitted to supports, in a file: the next run with the same supports, method and backbone needs no fitting."""

import hashlib
import inspect
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from model import parts
from model.methods.method import Method
from prediction.predictor import Predictor
from util.checkpoint import read_checkpoint, read_metadata
from util.errors import UserError
from util.files import atomic_write

NAME = "fitted.safetensors"


def save_fitted(path: Path, predictor: Predictor) -> bool:
    """Write the states of the predictor's supports; False, and nothing, where they are no mappings of tensors."""
    current = [id(state) for state in predictor.states.values()]
    content = flatten({key: state for key, state in predictor.known.items() if id(state) in current})
    if not all(isinstance(x, Tensor) for x in content.values()):
        return False
    tensors = {name: x.cpu().contiguous() for name, x in content.items()}
    atomic_write(path, save(tensors, {"fitted_by": identity(predictor)}))
    return True


def flatten(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """What mappings of mappings hold, by their names joined by dots."""
    flat: dict[str, Any] = {}
    for name, value in mapping.items():
        inner = {f"{name}.{key}": x for key, x in flatten(value).items()} if isinstance(value, dict) else {name: value}
        flat |= inner
    return flat


def load_fitted(path: Path, predictor: Predictor) -> bool:
    """Let the predictor know the states in a file, so that `set_support` finds them by what the supports show.

    False where there is no such file, one of another method, backbone or size, or, with a warning, a damaged one.
    """
    try:
        if not path.is_file() or read_metadata(path).get("fitted_by") != identity(predictor):
            return False
        content = read_checkpoint(path)
    except UserError:
        warnings.warn(f"{path}: is damaged; what it held is fitted anew", stacklevel=2)
        return False
    for name, x in content.items():
        *keys, last = name.split(".")
        state = predictor.known
        for key in keys:
            state = state.setdefault(key, {})
        state[last] = x.to(predictor.device)
    return True


def identity(predictor: Predictor) -> str:
    """SHA-256 of all that a state depends on but for the supports: the method's code, its weights, the size."""
    digest = hashlib.sha256()
    for module in predictor.model.modules():
        if isinstance(module, Method):
            digest.update(Path(inspect.getfile(type(module))).read_bytes())
    for file in sorted(Path(inspect.getfile(parts)).parent.glob("*.py")):
        digest.update(file.read_bytes())
    digest.update(f"{predictor.size} {predictor.amp}".encode())
    for name, x in sorted(predictor.model.state_dict().items()):
        digest.update(name.encode() + x.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
