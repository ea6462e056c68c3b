#!/usr/bin/env python3
"""Turns text into token ids with a Hugging Face tokenizer: HDF5 `/input_ids`, int32, [tokens]; for
sequences `/lengths` as well, int32, [sequences].

The input is a .jsonl file (one JSON object with "text" a line, each a document; empty lines are
skipped) or anything else, which is read as plain text: one document, its line ends read as LF. No
special tokens are added but to sequences; those spelled out in the text are recognised, as Hugging
Face does.

  --join-token ID   for calibration: documents in file order with ID (end of sequence) between them
  --raw-stream      for evaluation: documents joined by an empty line, tokenised as one text
  --sequences N     for encoders: each line (of a .jsonl, each document) is a sequence of its own,
                    with the tokenizer's special tokens, cut so that there are at most N with them;
                    empty lines are skipped

Exit codes: 2 bad content or arguments (file and line are named), 3 a file is absent or unreadable.
"""

import argparse
import errno
import hashlib
import json
import os
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile

import h5py
import numpy as np
from tokenizers import Tokenizer

BATCH_CHARACTERS = 4 << 20  # text tokenised at a time, unless one document is longer
COPY_TOKENS = 1 << 20
EXIT_CONTENT = 2
EXIT_FILE = 3


class TextError(Exception):
    """What is wrong with the content of which file, and where."""


def load_tokenizer(path: Path) -> tuple[Tokenizer, bytes]:
    """Reads tokenizer.json (or the one in a folder); returns it and its bytes."""
    file = path / "tokenizer.json" if path.is_dir() else path
    content = file.read_bytes()
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # tokenizers raises plain Exception
        raise TextError(f"{file}: not a tokenizer.json: {error}") from error
    # Some checkpoints carry these settings of their training; they would cut or fill the text.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer, content


def decode(content: bytes, path: Path, first_line: int = 1) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = first_line + content.count(b"\n", 0, error.start)
        raise TextError(f"{path}, line {line}: not UTF-8: {error.reason}") from error


def document_of_line(content: bytes, path: Path, line: int) -> str:
    try:
        record = json.loads(decode(content, path, line))
    except json.JSONDecodeError as error:
        raise TextError(f"{path}, line {line}: not JSON: {error.msg}") from error
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        raise TextError(f'{path}, line {line}: wants an object with a string "text"')
    try:
        record["text"].encode("utf-8")
    except UnicodeEncodeError as error:
        raise TextError(
            f"{path}, line {line}: half a surrogate pair in the text"
        ) from error
    return record["text"]


def documents(path: Path) -> Iterator[str]:
    """Yields the documents in file order."""
    with path.open("rb") as file:
        if path.suffix != ".jsonl":
            text = decode(file.read(), path)
            # As Python's text mode reads it: CRLF and CR would be predicted as tokens of their
            # own, which makes WikiText-2 with CRLF 1.1 % "better" than the same text with LF.
            yield text.replace("\r\n", "\n").replace("\r", "\n")
            return
        for line, content in enumerate(file, start=1):
            if content.strip():
                yield document_of_line(content, path, line)


def batches(texts: Iterator[str]) -> Iterator[list[str]]:
    batch, characters = [], 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def joined_ids(
    tokenizer: Tokenizer, path: Path, join_token: int | None
) -> Iterator[list[int]]:
    """Yields the ids of each document, `join_token` leading all but the first."""
    first = True
    for batch in batches(documents(path)):
        # The fast form keeps no offsets: a tenth of the memory.
        for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            if first:
                yield encoding.ids
            elif join_token is None:
                raise TextError(
                    f"{path}: several documents: say --join-token ID or --raw-stream"
                )
            else:
                yield [join_token, *encoding.ids]
            first = False


def stream_ids(tokenizer: Tokenizer, path: Path) -> list[int]:
    """The ids of the whole file as one text."""
    text = "\n\n".join(documents(path))
    return tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids


def sequence_ids(tokenizer: Tokenizer, path: Path, longest: int) -> Iterator[list[int]]:
    """Yields the ids of each sequence."""
    tokenizer.enable_truncation(longest)
    texts = documents(path)
    if path.suffix != ".jsonl":
        texts = (line for line in next(texts).split("\n") if line.strip())
    for batch in batches(texts):
        for encoding in tokenizer.encode_batch_fast(batch):
            if encoding.ids:  # a normaliser may leave nothing of a line
                yield encoding.ids


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_tokens(
    source: Path,
    output: Path,
    chunks: Iterator[list[int]],
    attributes: dict,
    with_lengths: bool,
) -> int:
    """Writes durably under a temporary name, then renames. Returns the number of tokens."""
    if not output.parent.is_dir():
        raise FileNotFoundError(
            errno.ENOENT, "no such folder to write into", str(output.parent)
        )
    # A name of its own: one whose caller was killed may still be writing.
    temporary = output.with_name(f"{output.name}.{os.getpid()}.tmp")
    # Contiguous HDF5 wants the size first, so the ids wait in an unnamed file beside it.
    with TemporaryFile(dir=output.parent) as spool:
        num_tokens = 0
        lengths = []
        for ids in chunks:
            array("i", ids).tofile(spool)
            num_tokens += len(ids)
            lengths.append(len(ids))
        if num_tokens == 0:
            raise TextError(f"{source}: no tokens: the text is empty")
        spool.seek(0)
        try:
            fill_dataset(
                temporary, spool, num_tokens, attributes, lengths if with_lengths else None
            )
            os.replace(temporary, output)
        finally:
            temporary.unlink(missing_ok=True)
    return num_tokens


def fill_dataset(
    path: Path, spool, num_tokens: int, attributes: dict, lengths: list[int] | None
) -> None:
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("input_ids", shape=(num_tokens,), dtype="<i4")
        for start in range(0, num_tokens, COPY_TOKENS):
            stop = min(start + COPY_TOKENS, num_tokens)
            dataset[start:stop] = np.frombuffer(
                spool.read(4 * (stop - start)), dtype=np.int32
            )
        for name, value in attributes.items():
            dataset.attrs[name] = value
        if lengths is not None:
            file.create_dataset("lengths", data=np.array(lengths, dtype=np.int32))
    with path.open("rb") as file:
        os.fsync(file.fileno())


def run(args: argparse.Namespace) -> int:
    tokenizer, content = load_tokenizer(args.tokenizer)
    if args.join_token is not None:
        size = tokenizer.get_vocab_size(with_added_tokens=True)
        if not 0 <= args.join_token < size:
            raise TextError(
                f"--join-token {args.join_token}: the tokenizer has ids 0 to {size - 1}"
            )
    attributes = {
        "tokenizer_sha256": hashlib.sha256(content).hexdigest(),
        "text_sha256": file_sha256(args.input),
    }
    if args.sequences is not None:
        added = tokenizer.num_special_tokens_to_add(is_pair=False)
        if args.sequences <= added:
            raise TextError(
                f"--sequences {args.sequences}: the tokenizer adds {added} special tokens to each"
            )
        chunks = sequence_ids(tokenizer, args.input, args.sequences)
    elif args.raw_stream:
        chunks = iter([stream_ids(tokenizer, args.input)])
    else:
        chunks = joined_ids(tokenizer, args.input, args.join_token)
    with_lengths = args.sequences is not None
    return write_tokens(args.input, args.output, chunks, attributes, with_lengths)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="tokenizer.json or its folder"
    )
    parser.add_argument(
        "--input", type=Path, required=True, help="text or .jsonl file, UTF-8"
    )
    parser.add_argument("--output", type=Path, required=True, help="HDF5 file to write")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--join-token", type=int, metavar="ID", help="id between two documents"
    )
    mode.add_argument(
        "--raw-stream", action="store_true", help="one stream, no special tokens"
    )
    mode.add_argument(
        "--sequences", type=int, metavar="N", help="one a line, of at most N tokens"
    )
    args = parser.parse_args()
    try:
        num_tokens = run(args)
    except TextError as error:
        print(f"tokenize_text: {error}", file=sys.stderr)
        return EXIT_CONTENT
    except OSError as error:
        name = error.filename or args.output
        print(f"tokenize_text: {name}: {error.strerror or error}", file=sys.stderr)
        return EXIT_FILE
    # Not on stdout: that belongs to the program that calls this one.
    print(f"{args.output}: {num_tokens} tokens", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
