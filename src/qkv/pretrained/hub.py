"""Models by the name they have on the Hugging Face Hub: fetched once, through the hub's own library and cache."""

from __future__ import annotations

import re
from pathlib import Path

from qkv.errors import DownloadError

_REPO_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
_MODEL_PATTERNS = ("*.json", "*.safetensors", "*.model", "*.spm", "*.txt", "*/config.json")
_CONFIG_PATTERNS = ("*.json", "*/config.json")
"""What a model is read from, and what says its shape. Files of torch.save, which are pickles, are not fetched."""
_IGNORED_PATTERNS = ("consolidated*", "original/*")
"""What some publishers keep beside, which is the same model in their own form."""


def is_repo_id(name: str) -> bool:
    """Whether this could be a name on the hub, such as "openai-community/gpt2"."""
    return _REPO_ID.fullmatch(name) is not None


def download(repo_id: str, *, with_weights: bool = True) -> Path:
    """The folder of a model on the hub, downloaded unless it is in the cache; without its weights if not wanted.

    HF_HOME says where the cache is; with HF_HUB_OFFLINE=1 nothing but the cache is looked at. Raises DownloadError.
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
