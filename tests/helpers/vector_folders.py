"""Folders of features made from arrays, without a model; and their neighbors by brute force."""

import numpy as np

from vitrail.data.entries import ImageEntry, row_id
from vitrail.data.reader import Chunk
from vitrail.features.store import ChunkWriter, Column, FeatureFolder, StoredFeatures, schema_of


def clustered(number, size=32, *, clusters=40, seed=0):
    """Vectors in clusters of eight dimensions, and some noise."""
    rng = np.random.default_rng(seed)
    centers, directions = rng.standard_normal((clusters, 8)), rng.standard_normal((8, size))
    latent = centers[rng.integers(clusters, size=number)] + 0.3 * rng.standard_normal((number, 8))
    return (latent @ directions + 0.1 * rng.standard_normal((number, size))).astype(np.float32)


def write_vectors(folder, partitions, *, shard_size=100, images="digest"):
    """Write, or complete, features named "pooled" from a list of arrays, one for each partition. Return the stored features."""
    settings = {
        "vitrail": "0",
        "model": "model",
        "collection": {"source": "images"},
        "images": {"number": None, "digest": images},
        "features": ["pooled"],
        "dtype": "float32",
        "shard_size": shard_size,
    }
    target = FeatureFolder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    target.begin(settings)
    schema = schema_of([Column("pooled", partitions[0].shape[1])], dtype="float32", label_type=None)
    done = target.finished_chunks(resumed=True)
    for partition, vectors in enumerate(partitions):
        for number, start in enumerate(range(0, len(vectors), shard_size)):
            rows = range(start, min(start + shard_size, len(vectors)))
            if Chunk(partition, number) in done:
                continue
            writer = ChunkWriter(target, Chunk(partition, number), schema, first_row=start)
            writer.add([ImageEntry(row, f"{partition}/{row}.jpg") for row in rows], {"pooled": vectors[rows.start : rows.stop]})
            writer.finish()
        target.end_partition(partition, len(vectors))
    target.settle(finished=True)
    return StoredFeatures(folder)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def ids_of(partitions):
    """The ids of all rows, ascending."""
    return np.array([row_id(partition, row) for partition, vectors in enumerate(partitions) for row in range(len(vectors))])


def brute_force(partitions, query, k):
    """Return the ids and cosines of the k nearest rows."""
    cosines = unit(np.concatenate(partitions).astype(np.float64)) @ unit(query.astype(np.float64))
    nearest = np.argsort(-cosines)[:k]
    return ids_of(partitions)[nearest].tolist(), cosines[nearest]
