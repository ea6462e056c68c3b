"""Reads an activation cache the way anyone else would and compares it with a raw dump.

usage: read_cache_with_h5py.py CACHE RAW
CACHE is a file of ActivationCacheWriter, RAW its elements end to end. Exits 0 if h5py (through
hdf5plugin's zstd) gives the same bytes, and if /index points at the chunks where HDF5 finds them.
"""

import sys
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401  (registers filter 32015)

DTYPES = {"BF16": "<u2", "F16": "<f2", "F32": "<f4"}


def main(cache: str, raw: str) -> None:
    with h5py.File(cache, "r") as file:
        hidden = file["hidden"]
        dtype = hidden.attrs["dtype"].decode()
        assert file.attrs["magic"].decode() == "coppice.activations", file.attrs[
            "magic"
        ]
        assert file.attrs["version"] == 1, file.attrs["version"]
        assert tuple(file.attrs["shape"]) == hidden.shape, (
            file.attrs["shape"],
            hidden.shape,
        )
        assert hidden.dtype == DTYPES[dtype], (hidden.dtype, dtype)
        assert hidden.chunks == (1, *hidden.shape[1:]), hidden.chunks

        found, expected = hidden[...].tobytes(), Path(raw).read_bytes()
        assert len(found) == len(expected), (len(found), len(expected))
        assert found == expected, "the elements differ"

        for window, row in enumerate(file["index"][...]):
            chunk = hidden.id.get_chunk_info_by_coord((window, 0, 0))
            assert row["offset"] == chunk.byte_offset, (window, row, chunk)
            assert row["stored_bytes"] == chunk.size, (window, row, chunk)
            assert row["compressed"] == (chunk.filter_mask == 0), (window, row, chunk)


if __name__ == "__main__":
    main(*sys.argv[1:])
