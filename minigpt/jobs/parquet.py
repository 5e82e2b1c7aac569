"""Parquet files: their columns and rows, and tables of records; all that needs pyarrow."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, BinaryIO

from minigpt.jobs.columns import Kinds, utf8
from minigpt.lazy import arrow, arrow_parquet


def schema_of(file: BinaryIO, where: str, needed: str) -> tuple[arrow.Schema, int]:
    """The columns of a Parquet file, and how many rows it has.

    Args:
        file: open for reading.
        where: what errors call it.
        needed: a column that it must have.

    Raises:
        ValueError: it is damaged, or lacks the column.
    """
    try:
        opened = arrow_parquet.ParquetFile(file)
    except (arrow.ArrowException, OSError) as error:
        raise ValueError(f"{where} is no Parquet file, or damaged: {error}") from None
    schema = opened.schema_arrow
    if needed not in schema.names:
        raise ValueError(f"{where} has no column {needed!r}; it has {', '.join(schema.names) or 'none'}")
    return schema, opened.metadata.num_rows


def read_table(file: BinaryIO, begin: int, n_rows: int) -> arrow.Table:
    """Some rows of a Parquet file, one after the other; memory is bounded by their number."""
    opened = arrow_parquet.ParquetFile(file)
    groups, first, skip = [], 0, begin
    for i in range(opened.metadata.num_row_groups):
        end = first + opened.metadata.row_group(i).num_rows
        if first < begin + n_rows and end > begin:
            groups.append(i)
        elif end <= begin:
            skip = begin - end
        first = end
    parts, wanted = [], n_rows
    for batch in opened.iter_batches(batch_size=max(n_rows, 1), row_groups=groups):
        part = batch.slice(skip, wanted)
        skip = max(0, skip - batch.num_rows)
        wanted -= part.num_rows
        parts.append(part)
        if not wanted:
            break
    return arrow.Table.from_batches(parts, schema=opened.schema_arrow)


def without(schema: arrow.Schema, names: Collection[str]) -> arrow.Schema:
    """The columns but for some."""
    return arrow.schema([field for field in schema if field.name not in names])


def united(schemas: Sequence[arrow.Schema]) -> arrow.Schema:
    """All columns of several files; numbers of one name become the wider kind.

    Raises:
        ValueError: columns of one name cannot be of one kind.
    """
    try:
        return arrow.unify_schemas(
            [schema.remove_metadata() for schema in schemas], promote_options="permissive"
        )
    except arrow.ArrowException as error:
        raise ValueError(f"columns of the Parquet files differ: {error}; use --format jsonl") from None


def schema_of_kinds(kinds: Kinds) -> arrow.Schema:
    """The columns for JSON values of these kinds; where all were null, strings."""
    return arrow.schema([(name, arrow.type_for_alias(kind or "string")) for name, kind in kinds.items()])


def arrow_type(kind: Any) -> arrow.DataType:
    """The type of a field: int, float and str as they are, [kind] for lists of it, {name: kind} for objects.

    >>> arrow_type([{"token": int, "logprob": float}])
    ListType(list<item: struct<token: int64, logprob: double>>)
    """
    if isinstance(kind, list):
        return arrow.list_(arrow_type(kind[0]))
    if isinstance(kind, dict):
        return arrow.struct([(name, arrow_type(inner)) for name, inner in kind.items()])
    return {int: arrow.int64(), float: arrow.float64(), str: arrow.string()}[kind]


def table_of(
    records: Sequence[Mapping[str, Any]],
    kinds: Mapping[str, Any],
    kept: arrow.Table,
    schema: arrow.Schema,
    names: Mapping[str, str],
) -> arrow.Table:
    """Records as a table, with the columns that are kept beside them, row by row.

    Args:
        records: the rows' own fields.
        kinds: the kind of each field, see `arrow_type`.
        kept: what is kept of the input, for each record a row.
        schema: the kept columns of the whole job, which are those of every shard.
        names: what each of these is called beside the others.
    """
    own = arrow.schema([(name, arrow_type(kind)) for name, kind in kinds.items()])
    rows = [
        {name: utf8(value) if isinstance(value, str) else value for name, value in one.items()}
        for one in records
    ]
    table = arrow.Table.from_pylist(rows, own)
    for field in schema:
        there = field.name in kept.column_names
        column = kept.column(field.name).cast(field.type) if there else arrow.nulls(kept.num_rows, field.type)
        table = table.append_column(names[field.name], column)
    return table


def table_of_objects(objects: Sequence[Mapping[str, Any]], schema: arrow.Schema) -> arrow.Table:
    """JSON objects as a table; in a column of strings, what is none is written as JSON."""
    rows = [
        {name: _fitting(one.get(name), schema.field(name).type) for name in schema.names} for one in objects
    ]
    return arrow.Table.from_pylist(rows, schema)


def _fitting(value: Any, kind: arrow.DataType) -> Any:
    if value is None or not arrow.types.is_string(kind):
        return value
    return utf8(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def objects_of(table: arrow.Table) -> list[dict[str, Any]]:
    """The rows of a table as Python has them; times to the microsecond, which is what Python can."""
    fields = [
        field.with_type(arrow.timestamp("us", field.type.tz))
        if arrow.types.is_timestamp(field.type)
        else field
        for field in table.schema
    ]
    rows: list[dict[str, Any]] = table.cast(arrow.schema(fields), safe=False).to_pylist()
    return rows


def write_table(table: arrow.Table, file: BinaryIO) -> None:
    arrow_parquet.write_table(table, file)
