import fsspec
import pytest


@pytest.fixture
def memory():
    """A store of fsspec in the memory of this process."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pseudo_dirs[:] = [""]
    yield store
    store.store.clear()
    store.pseudo_dirs[:] = [""]
