"""Models by their name on the Hugging Face Hub, downloaded once through the hub's own library and cache."""

from __future__ import annotations

import re
from pathlib import Path

from qkv.errors import DownloadError

_REPO_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
_MODEL_PATTERNS = ("*.json", "*.safetensors", "*.model", "*.spm", "*.txt", "*/config.json")
_CONFIG_PATTERNS = ("*.json", "*/config.json")
"""Files to download: weights and configuration. Files of torch.save, which are pickles, are left out."""
_IGNORED_PATTERNS = ("consolidated*", "original/*")
"""Additional files of some publishers: the same model in their own format."""


def is_repo_id(name: str) -> bool:
    """Return whether this could be a name on the hub, such as "openai-community/gpt2"."""
    return _REPO_ID.fullmatch(name) is not None


def download(repo_id: str, *, with_weights: bool = True) -> Path:
    """Return the folder of a model on the hub, downloaded unless it is in the cache, optionally without its weights.

    HF_HOME sets the cache folder; with HF_HUB_OFFLINE=1 only the cache is used. Raises DownloadError.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        patterns = list(_MODEL_PATTERNS if with_weights else _CONFIG_PATTERNS)
        return Path(
            huggingface_hub.snapshot_download(repo_id, allow_patterns=patterns, ignore_patterns=list(_IGNORED_PATTERNS))
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DownloadError(
            f"there is no folder {repo_id!r}, and no model of this name could be downloaded from the Hugging Face "
            f"Hub: {reason}. Expected a "
            "folder, or a name such as openai-community/gpt2; check its spelling and the network"
        ) from error
