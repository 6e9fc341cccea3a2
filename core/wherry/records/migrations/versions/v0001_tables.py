"""The first tables: runs, their results, the results' JSON, raw samples."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make them."""
    op.create_table(
        "wherry_run",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("run_id", sa.Text(), nullable=False, unique=True),
        sa.Column("tag", sa.Text()),
        sa.Column("started", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished", sa.DateTime(timezone=True), nullable=False),
        sa.Column("manifest", sa.Text(), nullable=False),
        sa.Column("model", sa.Text()),
        sa.Column("wherry", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("ok", sa.Integer(), nullable=False),
        sa.Column("failed", sa.Integer(), nullable=False),
        sa.Column("skipped", sa.Integer(), nullable=False),
        sa.Column("gates", sa.Integer(), nullable=False),
        sa.Column("gates_failed", sa.Integer(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
    )
    op.create_index("wherry_run_started", "wherry_run", ["started", "id"])
    op.create_index("wherry_run_tag", "wherry_run", ["tag"])
    op.create_table(
        "wherry_result",
        sa.Column(
            "run",
            sa.Integer(),
            sa.ForeignKey("wherry_run.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("position", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("target_key", sa.Text(), nullable=False),
        sa.Column("started", sa.DateTime(timezone=True), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("variant", sa.Text(), nullable=False),
        sa.Column("backend", sa.Text(), nullable=False),
        sa.Column("precision", sa.Text(), nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("board", sa.Text()),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("median_ms", sa.Float(53)),
        sa.Column("low_ms", sa.Float(53)),
        sa.Column("high_ms", sa.Float(53)),
        sa.Column("timed_by", sa.Text()),
        sa.Column("clean", sa.Boolean()),
        sa.Column("emulated", sa.Boolean()),
        sa.Column("size_bytes", sa.BigInteger()),
        sa.Column("peak_memory_bytes", sa.BigInteger()),
        sa.Column("energy_mj", sa.Float(53)),
        sa.Column("metrics", sa.JSON(), nullable=False),
    )
    op.create_index("wherry_result_target", "wherry_result", ["target_key", "started", "run"])
    op.create_index("wherry_result_device", "wherry_result", ["device", "run"])
    for name, more in (
        ("wherry_detail", [sa.Column("body", sa.LargeBinary(), nullable=False)]),
        (
            "wherry_samples",
            [
                sa.Column("name", sa.Text(), primary_key=True),
                sa.Column("data", sa.LargeBinary(), nullable=False),
            ],
        ),
    ):
        op.create_table(
            name,
            sa.Column("run", sa.Integer(), primary_key=True),
            sa.Column("position", sa.Integer(), primary_key=True, autoincrement=False),
            *more,
            sa.ForeignKeyConstraint(
                ["run", "position"],
                ["wherry_result.run", "wherry_result.position"],
                ondelete="CASCADE",
            ),
        )
