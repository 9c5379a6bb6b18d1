"""Settings of all tests: laws are drawn without a deadline, since shared machines are uneven."""

from __future__ import annotations

import hypothesis

hypothesis.settings.register_profile("laws", deadline=None, max_examples=60)
hypothesis.settings.load_profile("laws")
