"""Bounds of Parquet files: the memory that a column would take, as the file declares it."""

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import VitrailError
from .remote import is_url

# A part of a column that is larger than the first, and larger than the second number times its size in the file, is a decompression bomb
MAX_EXPANDED = 2**26  # bytes
MAX_EXPANSION = 100


def check_tables(files: Iterable[str]) -> None:
    """Raise VitrailError if a local file is a decompression bomb. Files that are damaged, or in a store, are left to the reader."""
    for file in files:
        if is_url(file):
            continue
        try:
            metadata = pq.read_metadata(file)
        except (pa.ArrowException, OSError):
            continue
        for group in range(metadata.num_row_groups):
            for index in range(metadata.num_columns):
                column = metadata.row_group(group).column(index)
                expanded, stored = column.total_uncompressed_size, column.total_compressed_size
                if expanded > max(MAX_EXPANDED, MAX_EXPANSION * stored):
                    raise VitrailError(
                        f"{file} is a decompression bomb: {stored} bytes of its column {column.path_in_schema} become {expanded}. If it is "
                        "yours, write the table without compression."
                    )
