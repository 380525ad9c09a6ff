"""The typed errors of the package: each message says what was found, what was expected, and where."""


class IntsmoothError(Exception):
    """Base of every error that a wrong input causes; the command line prints it as one line."""


class ArithmeticRangeError(IntsmoothError):
    """An integer, a multiplier or a probability lies outside the range in which the arithmetic is exact."""


class ModelFormatError(IntsmoothError):
    """A model, or the file that holds it, breaks a rule of the model format."""


class DatasetError(IntsmoothError):
    """A dataset, or the file that holds it, cannot be used as it stands."""


class ParameterError(IntsmoothError):
    """A parameter of a run (sigma, n, alpha, an index, ...) is impossible or of no use."""


class ResultFileError(IntsmoothError):
    """A file of results cannot be written, or does not belong to the run that is to be resumed."""


class TranscriptError(IntsmoothError):
    """A transcript is not one, or breaks a rule of its format."""


class VectorFormatError(IntsmoothError):
    """A file of known-answer vectors breaks a rule of its format, or does not belong to what it is held against."""


def reason_of(problem: Exception) -> str:
    """What another library says of a problem: one line, shortened, to stand in an error of ours."""
    return " ".join(str(problem).split())[:200] or type(problem).__name__
