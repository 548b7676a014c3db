"""Where a model's files are: bundled with the package, in a folder, or in Hugging Face's cache."""

from __future__ import annotations

import hashlib
from pathlib import Path

from janus_moe.bundled import BUNDLED, BUNDLED_FOLDER
from janus_moe.errors import CheckpointError

_WANTED = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
_TAIL_BYTES = 4096
_UNWANTED = ["*/*"]  # copies in other formats lie in subfolders


def resolve_model(name: str) -> Path:
    """The folder of model `name`: "bundled", a local folder, or a Hugging Face id.

    HF_HOME, HF_TOKEN and HF_HUB_OFFLINE mean what they mean everywhere.
    """
    if name == BUNDLED:
        return _bundled()
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if not _looks_like_hub_id(name):
        raise CheckpointError(f"model folder {name!r} does not exist")
    return _from_hub(name)


def fingerprint(folder: Path) -> str:
    """A digest that tells copies of different models apart without reading their weights.

    It is of the config and of every weight file's name, size, header and last bytes.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = min(int.from_bytes(file.read(8), "little"), size)
            header = file.read(header_bytes)
            file.seek(max(0, size - _TAIL_BYTES))
            tail = file.read()
        for part in (path.name.encode(), str(size).encode(), header, tail):
            digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def _bundled() -> Path:
    if not (BUNDLED_FOLDER / "config.json").is_file():
        raise CheckpointError("this installation of janus-moe comes without the bundled model")
    return BUNDLED_FOLDER


def _looks_like_hub_id(name: str) -> bool:
    return not name.startswith((".", "/", "~")) and name.count("/") == 1 and not name.endswith("/")


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        folder = snapshot_download(name, allow_patterns=_WANTED, ignore_patterns=_UNWANTED)
    except (HfHubHTTPError, OSError, ValueError) as error:
        problem = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"model {name!r} is neither a local folder nor in the Hugging Face cache, and could "
            f"not be downloaded: {problem}. Download it where there is a network with "
            f"`hf download {name}` (HF_HOME says where the cache is), check the name and HF_TOKEN, "
            "or give a local folder"
        ) from error
    return Path(folder)
