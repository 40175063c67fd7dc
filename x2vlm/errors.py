"""Errors a user can fix. Each message says what is wrong, where, and what to do about it."""


class X2VLMError(Exception):
    """Base of every error this project raises on purpose."""


class ConfigError(X2VLMError):
    """An experiment, card or command line refers to something that does not exist, or contradicts itself."""


class SourceUnavailable(X2VLMError):
    """An upstream file is missing, unreadable or not in the format its card states."""


class NotEnoughRoom(X2VLMError):
    """A part needs more CPUs, GPUs or memory than its machines have, and none will be added."""


class InvalidSample(X2VLMError):
    """One row or media file cannot become a sample. Stages turn it into a counted drop.

    `rule` is the short snake_case reason that is counted; the message is for people.
    """

    def __init__(self, rule: str, message: str = "") -> None:
        super().__init__(f"{rule}: {message}" if message else rule)
        self.rule = rule
        self.message = message

    def __reduce__(self) -> tuple[type["InvalidSample"], tuple[str, str]]:
        return InvalidSample, (self.rule, self.message)


class CorruptArtifact(X2VLMError):
    """Stored bytes do not match their recorded sha256, or a manifest contradicts itself."""


class StageFailed(X2VLMError):
    """A node of the graph failed; names the node, the part and the first cause."""


class PlanBusy(X2VLMError):
    """Another driver holds the lease on this plan."""


class LeaseLost(PlanBusy):
    """This driver was silent for too long, another one took its work over, and it must not write any more."""


class ReaderLost(X2VLMError):
    """A process that prefetches samples was killed; names it, the signal and the likely cause."""


class MissingPackage(X2VLMError):
    """A package that this part needs is not installed; names it, and the command that installs it."""


class Stopped(X2VLMError):
    """The process was told to stop and did so in good order: what it says is saved is saved."""
