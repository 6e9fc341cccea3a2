"""What alembic runs: the migrations, on the connection and in the transaction of who calls."""

from __future__ import annotations

from alembic import context

from wherry.records.tables import VERSIONS, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSIONS,
)
with context.begin_transaction():
    context.run_migrations()
