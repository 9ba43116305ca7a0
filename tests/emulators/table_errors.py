"""What the Data API says about tables when it refuses something or warns: word for word where it was recorded.

Recorded are all but those marked `guessed`, whose wording follows the server's own file of messages.
"""

from __future__ import annotations

from typing import Any, Final

from tests.emulators.data_api import Refusal, RequestRefusal, error_object

Json = Any

INSERTED = (
    "Only values that are supported by the column data type can be included when inserting a document into a table."
)
DEFINES = "The table {table} defines the columns: {columns}."
INEFFICIENT = (
    "The query was executed without taking advantage of the primary key or indexes on the table, this can have "
    "performance implications on large tables.\n\nSee documentation for best practices for filtering."
)
HAS_KEYS = "The table {table} has the primary key: {key}.\nAnd has indexes on the columns: {indexed}."
SCALAR_NAMES: Final = (
    "ascii, bigint, blob, boolean, date, decimal, double, duration, float, inet, int, smallint, text, time, "
    "timestamp, tinyint, uuid, varint"
)
FIELD_NAMES: Final = (
    "ascii, bigint, boolean, blob, counter, date, decimal, double, duration, float, int, smallint, text, time, "
    "timestamp, tinyint, varint, inet, uuid, timeuuid"
)
TYPE_NAMES: Final = (
    "ascii, bigint, blob, boolean, date, decimal, double, duration, float, inet, int, smallint, text, time, "
    "timestamp, tinyint, uuid, timeuuid, varint, counter, list, map, set, vector, userDefined"
)
TABLE_COMMANDS: Final = (
    "alterTable, alterType, createIndex, createTextIndex, createVectorIndex, deleteMany, deleteOne, find, findOne, "
    "insertMany, insertOne, listIndexes, updateOne"
)
COLLECTION_COMMANDS: Final = (
    "countDocuments, deleteMany, deleteOne, estimatedDocumentCount, find, findAndRerank, findOne, findOneAndDelete, "
    "findOneAndReplace, findOneAndUpdate, insertMany, insertOne, updateMany, updateOne"
)
SOME_ARE_FOR_ONE = (
    "While many commands operate on both tables and collections, some commands can only be run against tables or "
    "collections. \n\n"
)
LIMITED = (
    "Currently API tables have limited support for: \n\n- Cassandra `timeuuid`, `counter` types.\n- Tuple types.\n"
    "- Filtering and indexing on Cassandra collection types `list`, `map`, `set`.\n- Defining `maps`, `list`, or "
    "`set` columns using any key type other than `text` or `ascii`.\n\nSupport for these features will be expanded "
    "in future releases.\n\n"
)
DATABASE_ERROR = (
    "The command used the keyspace and table or collection: {table}.\nThe command generated the CQL query: {cql}.\n"
    "The command generated the CQL values: {values}.\nThe database error: {why}.\n\n"
    "Retrying the command will likely result in the same error."
)


def existing(kind: str) -> tuple[str, str]:
    title = f"{kind.capitalize()} with the same name exists in the keyspace schema"
    return title, (
        f"The command attempted to add {'an' if kind == 'index' else 'a'} {kind} that already exists in the keyspace "
        f"schema.\n\nThe command attempted to add the existing {kind}: {{name}}.\n\nResend the command using "
        f"{'an' if kind == 'index' else 'a'} {kind} name that does not exist in the keyspace."
    )


def unknown(kind: str) -> tuple[str, str]:
    title = f"Dropped {kind} is not defined in the keyspace schema"
    article = "an" if kind == "index" else "a"
    return title, (
        f"The command attempted to drop {article} {kind} that is not in the keyspace schema.\n\nThe command attempted "
        f"to drop the unknown {kind}: {{name}}.\n\nResend the command using {article} {kind} that exists in the "
        "keyspace."
    )


TEXTS: dict[str, tuple[str, str]] = {  # code and, with a stroke, its scope -> title, message
    "CANNOT_ADD_EXISTING_INDEX/SCHEMA": existing("index"),
    "CANNOT_ADD_EXISTING_TABLE/SCHEMA": existing("table"),
    "CANNOT_ADD_EXISTING_TYPE/SCHEMA": existing("type"),
    "CANNOT_DROP_UNKNOWN_INDEX/SCHEMA": unknown("index"),
    "CANNOT_DROP_UNKNOWN_TABLE/SCHEMA": unknown("table"),
    "CANNOT_DROP_UNKNOWN_TYPE/SCHEMA": unknown("type"),  # guessed
    "CANNOT_DROP_TYPE_USED_BY_TABLE/SCHEMA": (
        "Type cannot be dropped if used by tables",
        "The command attempted to drop a type that is used by tables.\n\nThe command attempted to drop the type: "
        "{name}.\nThe command is used by the tables: {tables}.\n\nResend the command using a type that is not used "
        "by a table.",
    ),
    "CANNOT_VECTOR_SORT_NON_INDEXED_VECTOR_COLUMNS/SORT": (
        "Vector sort cannot be used for non indexed vector columns",
        "The command attempted to vector sort vector columns that are not indexed.\n\nVector sorting is only "
        "supported on vector columns that have been indexed.\n\nA vector sort in the sort clause identifies the "
        "vector column by name and then provides either:  \n- The vector as an array of decimal numbers.\n- The "
        'vector as a base64-encoded `{{"$binary": "base64-encoded-vector"}}` object.\n- A string to be vectorized '
        "if enabled for the column.\n\nThe table {table} defines the vector columns: {columns}.\nAnd has indexes on "
        "the vector columns: {indexed}.\nThe command attempted to sort vector columns: {sorted}.  \n\nResend the "
        "command using only indexed vector columns.",
    ),
    "COMMAND_FIELD_UNKNOWN/": (
        "Command field unknown",
        "Command field '{field}' not recognized: column '{column}' definition contains unknown field '{field}': not "
        "one of recognized fields [type, keyType, valueType, udtName, dimension, service].\n\nResend command with "
        "valid command fields.",
    ),
    "EXISTING_TABLE_NOT_DATA_API_COLLECTION/SCHEMA": (
        "Existing table not a valid Data API collection",
        "Attempt to create new collection failed: table '{name}' already exists and it is not a valid Data API "
        "collection.\n\nRecommend deleting the table and resending the command.",
    ),
    "INCOMPLETE_PRIMARY_KEY_FILTER/WARNING": (  # guessed
        "Incomplete filter on table primary key",
        "The filter only specified columns from the primary key, but did not specify the full primary key for the "
        "table.  \n\nThe table {table} defines the primary keys: {key}.\nThe filter has the following issues: \n  - "
        "Missing Partition Keys: {missing}.\n  - Out of order Partition Sort Keys: [None].\n\nFor the best "
        "performance, filter on all partition columns and optionally on clustering columns in the order they are "
        "specified. \n\n" + INEFFICIENT,
    ),
    "INVALID_COLUMN_VALUES/DOCUMENT": (
        "Column values in documents are not valid",
        f"{INSERTED}\n\n{DEFINES}\nThe command included the following columns that had invalid values: {{which}}.\n\n"
        "Resend the command using only supported column values.",
    ),
    "INVALID_FILTER_COLUMN_VALUES/FILTER": (  # guessed
        "Column value in filter is not valid",
        "Only values that are supported by the column data type can be included when filtering.\n\n"
        f"{DEFINES}\nThe command included the column {{which}} that has {{type}} type defined.\n\n"
        "Resend the command using only supported column values.",
    ),
    "MISSING_INDEX/WARNING": (
        "Filter includes columns that are not indexed",
        f"The filter includes columns that are not indexed. \n\n{HAS_KEYS}\nThe request filtered on the un-indexed "
        "columns: {which}.\n\nNote: There may be a small delay in newly created indexes propagating through the "
        "system, this warning may be ignored if the column(s) were recently indexed.\n\n" + INEFFICIENT,
    ),
    "MISSING_PRIMARY_KEY_COLUMNS/DOCUMENT": (
        "Primary key columns missing",
        "All primary key columns must be provided when inserting a document into a table. \n\nThe table {table} "
        "defines the primary key columns: {key}.\n\nThe command included values for primary key columns: {given}.\n"
        "The command did not include values for primary key columns: {missing}.\n\nResend the command including the "
        "missing primary key columns.",
    ),
    "UNKNOWN_DATA_TYPE/SCHEMA": (
        "Data type is unknown",
        f"The column definition used a data type that is not known.\n\n{LIMITED}The supported data types are: "
        f"{TYPE_NAMES}.\nThe command used the unsupported data type: {{name}}.\n\nResend the command using a known "
        "data types.",
    ),
    "UNKNOWN_INDEX_COLUMN/SCHEMA": (  # guessed
        "Index column is not defined in the table schema",
        "The command attempted to create an index on a column that is not in the table schema.\n\nIndexes can only be "
        f"created on existing columns.\n\n{DEFINES}\nThe command attempted to index the unknown columns: {{which}}.  "
        "\n\nResend the command using only columns defined in the table schema.",
    ),
    "UNKNOWN_TABLE_COLUMNS/DOCUMENT": (
        "Columns in documents are not defined in the table schema",
        "Only columns defined in the table schema can be included when inserted a document into a table.\n\n"
        f"{DEFINES}\nThe command included the following unknown columns: {{which}}.\n\n"
        "Resend the command using only defined columns.",
    ),
    "UNKNOWN_TABLE_COLUMNS/FILTER": (  # guessed
        "Columns in the filter are not defined in the table schema",
        "Only columns defined in the table schema can be filtered on.\n\n"
        f"{DEFINES}\nThe filter included the following unknown columns: {{which}}.\n\n"
        "Resend the command using only defined columns.",
    ),
    "UNKNOWN_TABLE_COLUMNS/PROJECTION": (  # guessed
        "Columns in the projection are not defined in the table schema",
        "Only columns defined in the table schema can be included in the projection.\n\n"
        f"{DEFINES}\nThe projection included the following unknown columns: {{which}}.\n\n"
        "Resend the command using only defined columns.",
    ),
    "UNKNOWN_PRIMITIVE_DATA_TYPE/SCHEMA": (  # guessed
        "Primitive data type is unknown",
        "The column definition used the short hand for the data type, which only supports primitive data types.\n\n"
        f"The supported primitive data types are: {SCALAR_NAMES}.\nThe command used the unsupported data type: "
        "{name}.\n\nResend the command using a known primitive data type.",
    ),
    "UNKNOWN_USER_DEFINED_TYPE/SCHEMA": (  # guessed
        "User defined type is unknown",
        "The column uses a user defined type that is not known.\n\nUnknown type {name}\n\nResend the command using a "
        "known user defined type.",
    ),
    "UNSUPPORTED_COLLECTION_COMMAND/": (
        "Command is not supported by collections",
        f"The command is not supported by collections in the API.  \n\n{SOME_ARE_FOR_ONE}The commands supported by "
        f"collections are: {COLLECTION_COMMANDS}.\nThe commands supported by tables are: {TABLE_COMMANDS}.\n\nThe "
        "unsupported command ran against the collection: {table}\nThe unsupported command was: {command}.\n\nResend "
        "using one of the supported commands. ",
    ),
    "UNSUPPORTED_COLUMN_TYPES/DOCUMENT": (
        "Column types in documents are not supported",
        "Only supported column types can be included when inserting a document into a table.\n\n"
        f"{DEFINES}\nThe command included the following columns that have unsupported data types: {{which}}.\n\n"
        "Resend the command using only supported column types.",
    ),
    "UNSUPPORTED_COLUMN_TYPES/PROJECTION": (
        "Column types in projection are not supported",
        "Only supported column types can be included when reading from a table.\n\n"
        f"{DEFINES}\nThe command included the following columns cannot be read: {{which}}.\n\n"
        "Resend the command using only supported column types.",
    ),
    "UNSUPPORTED_DATA_TYPE_TABLE_CREATION/SCHEMA": (
        "Table creation with unsupported data types",
        "The column definition used unsupported data types for the table creation.\n\nThe supported data types for "
        f"table creation are: {SCALAR_NAMES}.\nThe command used the unsupported data types for table creation : "
        "{which}.\n\nResend the command using supported data types for table creation.",
    ),
    "UNSUPPORTED_SCHEMA_NAME/SCHEMA": (
        "The used schema name is not supported",
        "The command attempted to create {a} with a name that is not supported.\n\nThe supported {kind} names must "
        "not be empty, more than 48 characters long, or contain non-alphanumeric-underscore characters.\nThe command "
        "used the unsupported {kind} name: '{name}'.\n\nResend the command using a supported {kind} name.",
    ),
    "UNSUPPORTED_TABLE_COMMAND/": (
        "Command is not supported by tables",
        f"The command is not supported by tables in the API.  \n\n{SOME_ARE_FOR_ONE}The commands supported by tables "
        f"are: {TABLE_COMMANDS}.\nThe commands supported by collections are: {COLLECTION_COMMANDS}.\n\nThe "
        "unsupported command ran against the table: {table}\nThe unsupported command was: {command}.\n\nResend "
        "using one of the supported commands.",
    ),
    "UNSUPPORTED_TYPE_FIELDS/SCHEMA": (
        "Type definition contains unsupported fields.",
        "The command attempted to create a user defined type with field definitions that use unsupported types.\n\n"
        f"The supported field data types are: {FIELD_NAMES}.\nThe command used the unsupported types: {{which}}.\n\n"
        "Resend the command using only supported field data types.",
    ),
    "UNSUPPORTED_UPDATE_OPERATIONS_FOR_TABLE/UPDATE": (
        "Update operation not supported by tables",
        "The command included update operations that are not supported by tables.\n\nAPI tables support the update "
        "operations: $unset, $push, $pullAll, $set.\nThe update included the unsupported operations: {which}.\n\n"
        "Resend the command using only supported update operations.",
    ),
    "UNSUPPORTED_UPDATE_OPERATOR/UPDATE": (
        "Update operator is not supported by target columns",
        "Only update operators that are supported by the column type can be used in the update clause.\n\nNote, $push "
        f"and $pullAll are only supported against map, set, list columns.\n\n{DEFINES}\nThe command used the update "
        "operator: {operator}.\nThe operation was not supported by the columns: {which}.\n\nResend the command using "
        "only supported update operators.",
    ),
    "UNSUPPORTED_VECTORIZE_WHEN_MISSING_VECTORIZE_DEFINITION/DOCUMENT": (
        "Vectorize not supported on column with missing vectorize configuration",
        "Vectorize can only be used with columns that have a vectorize configuration. \n\nVectorize configuration can "
        "be added when the table is created or later using the `alterTable` command.\n\nThe table {table} defines the "
        "vector columns with vectorize definition: [None].\nThe command included the following vector columns without "
        "vectorize definition: {which}.\n\nResend the command using only vector columns with a vectorize definition.",
    ),
    "ZERO_FILTER_OPERATIONS/WARNING": (
        "Zero operations provided in query filter",
        "Zero filters were provided in the filter for this query. \n\nProviding zero filters will return all rows in "
        "the table, which may have poor performance when the table is large. For the best performance, include one or "
        f"more filters using the primary key or indexes.\n\n{HAS_KEYS}\n\n" + INEFFICIENT,
    ),
}
SERVER_TEXTS: dict[str, tuple[str, str]] = {
    "INVALID_DATABASE_QUERY/DATABASE": (
        "Invalid database query",
        "The Data API command generated a database query that while syntactically correct, was rejected as invalid by "
        "the database.  \n\nThe Data API should have generated a valid query, or returned an error before sending the "
        "query to the database. \n\n" + DATABASE_ERROR,
    ),
    "UNSUPPORTED_DATABASE_QUERY/DATABASE": (
        "Unsupported database query",
        "The Data API command generated a database query that was syntactically incorrect, and was rejected by the "
        "database.  \n\nThe Data API should should only generate correct database syntax. \n\n" + DATABASE_ERROR,
    ),
    "UNEXPECTED_SERVER_ERROR/": (
        "Unexpected server error",
        "An unexpected server error occurred while processing the request. \n\nError Class: {java}\nError Message: "
        "{why}\n\nReview the Error Message before retrying this request.",
    ),
}


class TableRefusal(RequestRefusal):
    """A refusal whose scope and title depend on what was being done."""

    def __init__(self, family: str, scope: str, code: str, title: str, message: str) -> None:
        super().__init__(code, message)
        self.overrides = {"family": family, "scope": scope, "title": title}

    def as_json(self, document_id: Json = None) -> dict[str, Json]:
        """As the server sends it; it names no rows."""
        return error_object(self.code, self.message, **self.overrides)


def refusal(code_and_scope: str, **values: str) -> TableRefusal:
    """The refusal (or the warning) of that name, such as `UNKNOWN_TABLE_COLUMNS/DOCUMENT`."""
    code, _, scope = code_and_scope.partition("/")
    family = "SERVER" if code_and_scope in SERVER_TEXTS else "REQUEST"
    title, message = (SERVER_TEXTS if family == "SERVER" else TEXTS)[code_and_scope]
    return TableRefusal(family, scope, code, title, message.format(**values))


def not_done(refused: Refusal) -> dict[str, Json]:
    """The answer to a change of the schema that the database refused."""
    return {"status": {"ok": 0}, "errors": [refused.as_json()]}
