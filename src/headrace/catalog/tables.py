"""Tables of the catalog. Times are microseconds since 1970 UTC."""

from __future__ import annotations

import sqlalchemy as sa

SCHEMA_VERSION = 1

metadata = sa.MetaData()

meta = sa.Table(
    "headrace_meta",
    metadata,
    sa.Column("key", sa.String(50), primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)

sensors = sa.Table(
    "sensors",
    metadata,
    sa.Column("sensor_id", sa.String(200), primary_key=True),
    sa.Column("type", sa.String(100)),
    sa.Column("location", sa.String(200)),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("first_seen", sa.BigInteger, nullable=False),
    sa.Column("last_seen", sa.BigInteger, nullable=False),
)

positions = sa.Table(
    "positions",
    metadata,
    sa.Column("reader", sa.String(200), primary_key=True),
    sa.Column("topic", sa.String(200), primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("offset", sa.BigInteger, nullable=False),
)
