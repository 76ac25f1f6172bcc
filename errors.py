"""Every exception of the package.

The three files that are uploaded with a model (configuration, modeling, image processing) raise `ValueError`. All other modules raise the
exceptions below, which are `ValueError`s too, so that one `except` covers both. A message names what was found, what was expected, and
the remedy.
"""

import re

MAX_MESSAGE = 4000  # characters; a name in a file may have millions

# A URL: scheme, user and password, address, query. In fsspec, "::" joins two URLs
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,31}://)([^\s/?#'\"<>]*@)?((?:(?!::\w{1,32}://)[^\s?'\"<>])*)(\?[^\s'\"<>]*)?")

# Characters that a terminal obeys, that reverse the direction of text, and surrogates, which cannot be written
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def public_text(text: str) -> str:
    """Return text that can be shown and published.

    URLs lose user, password and query, which may be secrets; control characters and invalid bytes of names are escaped, as in JSON.
    """

    def without_secrets(url: re.Match[str]) -> str:
        query = url[4] or ""
        return url[1] + url[3] + query[len(query.rstrip(".,;:)]")) :]  # punctuation at the end belongs to the sentence

    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", _URL.sub(without_secrets, text))


def one_line(text: str) -> str:
    """Return public text as one line, without the middle of a text that is very long."""
    lines = [line.strip() for line in text.replace("\t", " ").splitlines()]
    line = public_text(" ".join(filter(None, lines)))
    return line if len(line) <= MAX_MESSAGE else f"{line[: MAX_MESSAGE // 2]} … {line[-MAX_MESSAGE // 2 :]}"


class VitrailError(ValueError):
    """Base class of the errors that a user can fix. The message is one line, whatever it quotes."""

    def __str__(self) -> str:
        return one_line(self._message())

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
    """The outputs of a compiled model or an exported graph differ from the outputs of the model."""


class StoreUnreachableError(VitrailError):
    """A store of images did not respond, after several tries."""


class UnreadableImageError(VitrailError):
    """An image that cannot be decoded. `path` is its file, `reason` the cause; `retry`: whether it may be readable later."""

    retry = False

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)  # both, so that the exception can be pickled
        self.path = path
        self.reason = one_line(reason)

    def _message(self) -> str:
        return f"cannot read the image {self.path}: {self.reason}"


class WorkerError(VitrailError):
    """An error in a worker process of a DataLoader, which re-raises it with the text of the traceback; only the message is kept."""

    def __init__(self, text: str) -> None:
        super().__init__(text.rpartition(f"{type(self).__name__}: ")[2].strip())
