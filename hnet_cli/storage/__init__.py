"""Durable files: everything that `prepare`, `train` and `convert` create, write, rename or delete goes through here.

A folder is written under a temporary name, every file fsynced, then renamed once; its `manifest.json` (size and SHA-256
of each file) reveals damage later. So rename survives kills and full disks, fsync power cuts, the manifest bit rot.
Every change of the disk is a call of a function of `os`, looked up when it is made: there tests inject faults.
"""
# ruff: noqa: F401  # the names that other rooms use; `streams` and `jsonl` hold the rest

from hnet_cli.storage.files import (
    GrowingFile,
    NewFile,
    append_text,
    cut_file,
    file_sha256,
    free_bytes,
    make_folder,
    os_errors,
    remove_file,
    staged_file,
    write_bytes,
    write_json,
    write_text,
)
from hnet_cli.storage.folders import (
    MANIFEST,
    discard,
    read_manifest,
    remove_folder,
    rename_folder,
    resumable_folder,
    staged_folder,
    verify_file,
    verify_folder,
)
from hnet_cli.storage.held import HeldFile
from hnet_cli.storage.lock import FolderLock, lock_holder, refuse_if_held
from hnet_cli.storage.outputs import member, output_file, refuse_output, spool, write_output
from hnet_cli.storage.reading import (
    LARGE,
    RECORDS,
    TOKENIZER,
    open_file,
    read_bytes,
    read_json,
    read_text,
)
from hnet_cli.storage.streams import decompressed, open_input, shown
