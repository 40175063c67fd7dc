"""Rows joined on disk with the annotations that refer to them.

Upstream files list images in one place and annotations in another, in any order and by the ten millions. Both are
spooled into a temporary SQLite file: memory stays under `CACHE_MIB` plus the annotations of one row, the temporary file
is about as large as the input. It is deleted when the join is closed.
"""

import json
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]
Item = tuple[str, Record]  # its type (a role or a unit), and the record

CACHE_MIB = 64
BATCH_ITEMS = 1000  # inserted at once


class Join(AbstractContextManager["Join"]):
    """Rows by id and items by row id; both are returned in the order in which they were added."""

    def __init__(self) -> None:
        # SQLite opens the file by name, so it cannot be an unnamed temporary file; `close` deletes the folder.
        self._folder = tempfile.TemporaryDirectory(prefix="x2vlm-join-", ignore_cleanup_errors=True)
        self._db = sqlite3.connect(Path(self._folder.name) / "join.sqlite", isolation_level=None)
        self._db.execute(f"PRAGMA cache_size = -{CACHE_MIB * 1024}")
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "temp_store = FILE", "locking_mode = EXCLUSIVE"):
            self._db.execute(f"PRAGMA {pragma}")
        self._db.execute("CREATE TABLE rows (position INTEGER PRIMARY KEY, id TEXT UNIQUE, record TEXT)")
        self._db.execute("CREATE TABLE items (position INTEGER PRIMARY KEY, id TEXT, what TEXT, record TEXT)")
        self._db.execute("CREATE TABLE listed (list TEXT, id TEXT, PRIMARY KEY (list, id)) WITHOUT ROWID")
        self._db.execute("BEGIN")
        self._indexed = False
        self._new_items: list[tuple[str, str, str]] = []

    def __exit__(self, *error: object) -> None:
        self._db.close()
        self._folder.cleanup()

    def add_row(self, row_id: str, record: Record) -> bool:
        """Add a row; False, without effect, if its id is there already."""
        cursor = self._db.execute("INSERT OR IGNORE INTO rows (id, record) VALUES (?, ?)", (row_id, json.dumps(record)))
        return cursor.rowcount == 1

    def row(self, row_id: str) -> Record | None:
        """The record of a row, None if there is no such row."""
        found = self._db.execute("SELECT record FROM rows WHERE id = ?", (row_id,)).fetchone()
        return None if found is None else json.loads(found[0])

    def first_listing(self, list_name: str, row_id: str) -> bool:
        """True for the first call with this id and list: a set on disk."""
        cursor = self._db.execute("INSERT OR IGNORE INTO listed VALUES (?, ?)", (list_name, row_id))
        return cursor.rowcount == 1

    def add_item(self, row_id: str, what: str, record: Record) -> None:
        """Add an item of a row, whether or not the row is there yet."""
        self._new_items.append((row_id, what, json.dumps(record)))
        if len(self._new_items) == BATCH_ITEMS:
            self._insert_items()

    def _insert_items(self) -> None:
        self._db.executemany("INSERT INTO items (id, what, record) VALUES (?, ?, ?)", self._new_items)
        self._new_items = []

    def unmatched(self) -> Iterator[tuple[str, str, Record]]:
        """(row id, what, record) of the items whose row was never added."""
        self._insert_items()
        query = "SELECT id, what, record FROM items WHERE NOT EXISTS (SELECT 1 FROM rows WHERE rows.id = items.id)"
        for row_id, what, record in self._db.execute(f"{query} ORDER BY position"):
            yield row_id, what, json.loads(record)

    def rows(self) -> Iterator[tuple[str, Record, list[Item]]]:
        """(id, record, items) of every row."""
        self._insert_items()
        if not self._indexed:
            self._db.execute("CREATE INDEX items_by_row ON items (id, position)")
            self._indexed = True
        find = "SELECT what, record FROM items WHERE id = ? ORDER BY position"
        for row_id, record in self._db.execute("SELECT id, record FROM rows ORDER BY position"):
            found = self._db.execute(find, (row_id,)).fetchall()
            records = json.loads(f"[{','.join(item for _, item in found)}]")  # one call for all: half the time
            yield row_id, json.loads(record), [(what, item) for (what, _), item in zip(found, records, strict=True)]
