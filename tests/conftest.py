"""Settings of all tests: one thread, laws without a deadline, and shapes checked wherever nothing is compiled."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import hypothesis  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

# Shared machines are uneven, so that a slow example says nothing.
hypothesis.settings.register_profile(
    "laws", deadline=None, max_examples=60, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("laws")


def pytest_configure(config: pytest.Config) -> None:
    """Check the shapes that the heart promises, except under `-m compile`, which could not trace the checks."""
    if config.option.markexpr != "compile":
        jaxtyping.install_import_hook(["qkv.attention", "qkv.positions"], "beartype.beartype")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run."""
    for item in items:
        if item.get_closest_marker("gpu"):
            import torch

            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))
        if item.get_closest_marker("weights") and not os.environ.get("QKV_WEIGHTS"):
            item.add_marker(pytest.mark.skip(reason="needs published weights; name their folder in QKV_WEIGHTS"))
