"""For pytest, while modules are changed: which tests run first, and what Hypothesis draws. See `__main__.py`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

#: The environment variable with the folder of the modules as they are without a change.
UNCHANGED = "GPUQ_UNCHANGED"

#: What Hypothesis draws: the same each time, and nothing to find a smaller example.
PROFILE = "mutation"
settings.register_profile(
    PROFILE,
    phases=[Phase.explicit, Phase.generate],
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that name the changed module first; of these and of the others, properties last."""
    names = [f"policy.{name}" for name in _changed()]
    naming = {path for path in {item.path for item in items} if any(name in path.read_text() for name in names)}
    items.sort(key=lambda item: (_of_the_module(item, names), _draws(item), item.path not in naming))


def _of_the_module(item: pytest.Item, names: list[str]) -> bool:
    """False, which is first, for tests in the file that is called as the module."""
    return not any(item.path.stem == f"test_{name.rpartition('.')[2]}" for name in names)


def _draws(item: pytest.Item) -> bool:
    return hasattr(getattr(item, "obj", None), "hypothesis") or "TestCase" in type(item.parent).__name__


def _changed() -> list[str]:
    unchanged = Path(os.environ[UNCHANGED])
    here = Path("gpuq/policy")
    return [path.stem for path in here.glob("*.py") if path.read_bytes() != (unchanged / path.name).read_bytes()]
