"""Every exception of the package.

The three files that are uploaded with a model (configuration, modeling, image processing) raise `ValueError`. All other modules raise the
exceptions below, which are `ValueError`s too, so that one `except` covers both. A message names what was found, what was expected, and
the remedy.
"""

import re

MAX_MESSAGE = 4000  # characters; a name in a file may have millions

# A URL: its scheme, user and password, address, and query without the punctuation that ends a sentence
_URL = re.compile(
    r"([A-Za-z][A-Za-z0-9+.-]{0,30}://)([^\s/?#'\"<>]*@)?([^\s?'\"<>]*)(\?[^\s'\"<>]*?(?=[.,;:)\]]{0,3}(?:['\"<>\s]|$)))?"
)

# Characters that a terminal obeys, line separators, characters that reverse the direction of text, and surrogates, which cannot be written
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def public_text(text: str) -> str:
    """Return text that can be shown and published.

    URLs lose user, password and query, which may be secrets; control characters and invalid bytes of names are escaped, as in JSON. Tabs
    and newlines stay.
    """
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", _URL.sub(r"\1\3", text))


class VitrailError(ValueError):
    """Base class of the errors that a user can fix. The message is one line, whatever it quotes."""

    def __str__(self) -> str:
        lines = [line.strip() for line in self._message().replace("\t", " ").splitlines()]
        message = public_text(" ".join(filter(None, lines)))
        return message if len(message) <= MAX_MESSAGE else f"{message[: MAX_MESSAGE // 2]} … {message[-MAX_MESSAGE // 2 :]}"

    def _message(self) -> str:
        return str(self.args[0]) if self.args else ""


class SourceNotFoundError(VitrailError, FileNotFoundError):
    """The path, URL or name does not exist."""


class DownloadError(VitrailError):
    """A download failed, or is incomplete."""


class UploadError(VitrailError):
    """The Hub refused an upload, or could not be reached; none of its files is visible there."""


class CorruptFileError(VitrailError):
    """A file is truncated, or its content is not valid for its format."""


class UnsafeFileError(VitrailError):
    """A pickle requests the execution of code; it is refused, and none of its code is executed."""


class UnsupportedCheckpointError(VitrailError):
    """The file is valid, but its family is unknown or its model is not supported."""


class ConversionError(VitrailError):
    """Keys or shapes of a checkpoint do not match the parameters of the model."""


class OutputMismatchError(VitrailError):
    """The outputs of an exported graph differ from the outputs of the model."""


class UnreadableImageError(VitrailError):
    """An image that cannot be decoded. `path` is its file, `reason` the cause."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)  # both, so that the exception can be pickled
        self.path = path
        self.reason = reason

    def _message(self) -> str:
        return f"cannot read the image {self.path}: {self.reason}"


class WorkerError(VitrailError):
    """An error in a worker process of a DataLoader, which re-raises it with the text of the traceback; only the message is kept."""

    def __init__(self, text: str) -> None:
        super().__init__(text.rpartition(f"{type(self).__name__}: ")[2].strip())
