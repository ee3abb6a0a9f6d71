"""Weight files of others -> named tensors. What a file holds is data: nothing in it is ever executed."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from softcpt.core.errors import BackboneError, Fault

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")

# The remedy for what the restricted reader refuses. Running it trusts the file, which is why we do not.
_CONVERT = """if you trust where the file comes from, convert it once, then load the new file:
      import torch
      from safetensors.torch import save_file
      found = {load}
      tensors = {{k: v.contiguous().clone() for k, v in {state}.items() if torch.is_tensor(v)}}
      save_file(tensors, {target!r})"""


class Weights(NamedTuple):
    """What a weight file holds.

    Attributes:
        tensors: as stored, on the CPU.
        metadata: text beside them; empty where the format has none.
    """

    tensors: dict[str, Tensor]
    metadata: Mapping[str, str]


def read_weights(path: Path) -> Weights:
    """The tensors of a ``.safetensors`` file or of a PyTorch checkpoint.

    A checkpoint goes through PyTorch's restricted reader only (``weights_only=True``). A ``state_dict``
    inside it is unpacked, and a ``module.`` before all names taken off, as open_clip does.

    Raises:
        BackboneError: the file is missing, cut short, of another format, or wants to execute something.
    """
    if not path.is_file():
        raise BackboneError(Fault(str(path), "no such file", "check the path"), about="the weights")
    if path.suffix == ".safetensors":
        weights = _read_safetensors(path)
    elif path.suffix in SUFFIXES:
        weights = Weights(_named_tensors(_read_checkpoint(path), path), {})
    else:
        raise BackboneError(
            Fault(str(path), f"weights cannot be read from {path.suffix or 'a file without ending'!r}",
                  "known endings: " + " ".join(SUFFIXES)),
            about="the weights",
        )  # fmt: skip
    if not weights.tensors:
        raise BackboneError(Fault(str(path), "holds no tensors", "take another file"), about="the weights")
    return weights


def _read_safetensors(path: Path) -> Weights:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            return Weights({name: file.get_tensor(name) for name in file.keys()}, metadata)  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise BackboneError(
            Fault(str(path), f"is no whole safetensors file: {error}", "fetch or copy it again"),
            about="the weights",
        ) from error


def _read_checkpoint(path: Path) -> object:
    if is_torchscript(path):
        raise _refused(
            path,
            "is a TorchScript archive, which holds code; archives are not executed here",
            load=f'torch.jit.load({str(path)!r}, map_location="cpu")',
            state="found.state_dict()",
        )
    try:
        with warnings.catch_warnings():
            # Old checkpoints make PyTorch talk about its own storage classes.
            warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
            found: object = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile or broken pickle can raise anything; the file is refused, not used
        reason = str(error).strip().splitlines()
        raise _refused(
            path,
            "is refused by PyTorch's restricted reader (weights_only=True): "
            f"{type(error).__name__}: {reason[0][:200] if reason else 'no reason given'}",
            load=f'torch.load({str(path)!r}, map_location="cpu", weights_only=False)',
            state='found.get("state_dict", found)',
        ) from error
    return found


def _refused(path: Path, what: str, *, load: str, state: str) -> BackboneError:
    target = str(path.with_suffix(".safetensors"))
    fix = _CONVERT.format(load=load, state=state, target=target)
    return BackboneError(Fault(str(path), what, fix), about="the weights")


def is_torchscript(path: Path) -> bool:
    """Whether the file is an archive of ``torch.jit.save``, like OpenAI's original downloads."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return False
    # Only TorchScript stores constants and code beside the data.
    return any(name.count("/") == 1 and name.endswith("/constants.pkl") for name in names)


def _named_tensors(found: object, path: Path) -> dict[str, Tensor]:
    """The state dict of a checkpoint, whatever else the checkpoint holds."""
    if isinstance(found, Mapping) and "state_dict" in found:
        found = found["state_dict"]
    if not isinstance(found, Mapping):
        raise BackboneError(
            Fault(str(path), f"holds {type(found).__name__}, not named tensors", "save model.state_dict()"),
            about="the weights",
        )
    faults = [
        Fault(f"{path}: {name}", f"is {type(value).__name__}, not a tensor", "save model.state_dict()")
        for name, value in found.items()
        if not (isinstance(name, str) and isinstance(value, Tensor))
    ]
    if faults:
        raise BackboneError(faults, about="the weights")
    tensors = {str(name): value for name, value in found.items()}
    if tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors
