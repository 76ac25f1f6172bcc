"""Every exception of the package.

The three files that are uploaded with a model (configuration, modeling, image processing) import nothing from here and raise
`ValueError`; everything above them raises one of these, and all of them are `ValueError`s too, so that one `except` covers both.
The message says what was found, what was expected and what to do.
"""


class VitrailError(ValueError):
    """Base class of the errors that a user can cause and mend."""


class SourceNotFoundError(VitrailError, FileNotFoundError):
    """Nothing stands at the path, URL or name that was given."""

    def __str__(self) -> str:
        return str(self.args[0])  # OSError's own __str__ wants an errno


class DownloadError(VitrailError):
    """A download failed, or what arrived is not what was announced."""


class UploadError(VitrailError):
    """The Hub refuses an upload, or could not be reached; no file of it can be seen there."""


class CorruptFileError(VitrailError):
    """A file ends early or is not of the format that its content claims."""


class UnsafeFileError(VitrailError):
    """A pickle asks for code to be run; it is refused and nothing of it is executed."""


class UnsupportedCheckpointError(VitrailError):
    """The file is sound, but is something the model cannot represent, or that no known family has written."""


class ConversionError(VitrailError):
    """Names or shapes of a checkpoint and of the model do not match one to one."""


class OutputMismatchError(VitrailError):
    """Another engine answers otherwise than the model that was exported for it."""


class UnreadableImageError(VitrailError):
    """A file that should be an image does not decode. `path` names it, `reason` says why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)  # both, so that it comes whole out of another process
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot read the image {self.path}: {self.reason}"


class WorkerError(VitrailError):
    """An error in a process of a DataLoader, which makes a new one in ours of the text of the traceback: what was said remains."""

    def __init__(self, text: str) -> None:
        super().__init__(text.rpartition(f"{type(self).__name__}: ")[2].strip())
