"""See triton_tests."""

from triton_tests import IGNORED, _poisoned_memory, pytest_collection_modifyitems

__all__ = ["_poisoned_memory", "collect_ignore_glob", "pytest_collection_modifyitems"]
collect_ignore_glob = IGNORED
