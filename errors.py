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


class CorruptFileError(VitrailError):
    """A file ends early or is not of the format that its content claims."""


class UnsafeFileError(VitrailError):
    """A pickle asks for code to be run; it is refused and nothing of it is executed."""


class UnsupportedCheckpointError(VitrailError):
    """The file is sound, but is something the model cannot represent, or that no known family has written."""


class ConversionError(VitrailError):
    """Names or shapes of a checkpoint and of the model do not match one to one."""
