"""The errors a user may meet: what was wrong, where, what to do, and an exit code.

TuttiError (1: something failed)
├── InvalidInput (2: the input is wrong; nothing was written)
│   ├── InvalidSpec          a task spec file
│   ├── InvalidData          a JSONL data file or row
│   ├── InvalidModelFolder   a base model folder or GGUF file
│   └── UnknownName          a base, task, version, alias or job that does not exist
├── GateRefused (1)          a promotion's condition does not hold
├── AliasMoved (1)           an alias is not at the version that the caller believed it at
├── StoreUnavailable (1)     the artifact store cannot be read or written now
├── IntegrityError (1)       bytes differ from their digest, or a base from its fingerprint
├── ClusterUnavailable (1)   no Ray cluster can be reached, or it has no machine to train on
├── StaleLease (1)           another holder has taken over: the write changed 0 rows
└── SchemaMismatch (1)       the database schema is older or newer than the program

They cross processes, so they pickle: args hold the fields, `__str__` makes the sentence.
"""


class TuttiError(Exception):
    """Something failed. `message` says what and where, `remedy` what to do (may be empty)."""

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  {self.remedy}" if self.remedy else self.message


class InvalidInput(TuttiError):
    """The user's input cannot be accepted. Nothing was written."""

    exit_code = 2


class InvalidSpec(InvalidInput):
    """A task spec is wrong; the message names the file and the line or key."""


class InvalidData(InvalidInput):
    """A data file or row is wrong; the message names the file and the line."""


class InvalidModelFolder(InvalidInput):
    """A folder or file is not a base model that can be loaded safely."""


class UnknownName(InvalidInput):
    """A name refers to nothing."""


class GateRefused(TuttiError):
    """A promotion gate does not hold; the message lists each failed condition with its numbers."""


class AliasMoved(TuttiError):
    """An alias points elsewhere than its caller believed; nothing was moved. The message says
    where, who moved it, and when."""


class StoreUnavailable(TuttiError):
    """The artifact store takes or gives nothing now: its disk, network or permissions. What it
    holds may be whole, so the same may go well later."""


class IntegrityError(TuttiError):
    """Stored bytes are not what their digest or fingerprint says."""


class ClusterUnavailable(TuttiError):
    """There is no cluster to train on now; a later try may find one."""


class StaleLease(TuttiError):
    """The holder's lease is gone, so its write changed nothing."""


class SchemaMismatch(TuttiError):
    """The database's schema is not the one this program was written for."""


#: Would come again, were the same tried again. Others (a lost peer, a full disk) may not.
DETERMINISTIC = (TuttiError, ValueError, TypeError, LookupError, AttributeError, AssertionError)
