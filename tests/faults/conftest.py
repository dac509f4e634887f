"""The queue with real processes, as the tests of jobs have it."""

from tests.jobs.conftest import House, expected_curve, house

__all__ = ["House", "expected_curve", "house"]
