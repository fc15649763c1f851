"""Which errors would come again, were the same tried again; and whose they are.

What comes up while one task is opened or takes its step is that task's own. What comes up in what
tasks share is the machine's: nobody can tell which of them, if any, is to blame.
"""

from orchestrator.domain.errors import DETERMINISTIC as DETERMINISTIC
from orchestrator.domain.errors import IntegrityError, StoreUnavailable
from orchestrator.domain.job import Fault

#: What a checkpoint raises whose content is of no use.
UNUSABLE = (IntegrityError, ValueError, TypeError, LookupError, AttributeError)


def fault_of(error: BaseException) -> Fault:
    """Whose fault it is that a task cannot be opened."""
    return Fault.MACHINE if isinstance(error, StoreUnavailable) else Fault.USER
