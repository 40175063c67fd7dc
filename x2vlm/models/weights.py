"""The state of a model without repeats, and loading it back with every name and shape checked."""

from collections.abc import Mapping

from torch import Tensor, nn

from x2vlm.errors import CorruptArtifact


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model without repeats: tensors that share memory appear once, under their first name."""
    seen: set[int] = set()
    state = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen or not tensor.numel():
            seen.add(tensor.data_ptr())
            state[name] = tensor
    return state


def load_own_tensors(model: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Put what `own_tensors` gave into `model`; CorruptArtifact, naming `origin`, unless names and shapes fit."""
    expected = own_tensors(model)
    missing, unexpected = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    wrong = [name for name in expected if name in state and expected[name].shape != state[name].shape]
    if missing or unexpected or wrong:
        raise CorruptArtifact(f"{origin}: weights of another model: {missing=}, {unexpected=}, other shapes: {wrong}")
    model.load_state_dict(dict(state), strict=False)
