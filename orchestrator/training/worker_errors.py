"""Which errors would come again, were the same tried again."""

from orchestrator.domain.errors import TuttiError

#: Others (a lost peer, a full disk) end the worker group, and Ray starts it again.
DETERMINISTIC = (TuttiError, ValueError, TypeError, LookupError, AttributeError, AssertionError)
