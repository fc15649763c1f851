"""Fills a registry, and MLflow's, with as many versions as are asked for, by SQL alone.

Versions come round by round, one of each task, as they would from tasks trained again and again:
twenty bases take turns by task, accuracies are spread evenly, each task's newest version is in
production after one promotion for each of its last ten versions.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, create_engine, text

NUM_BASES = 20
NUM_PROMOTIONS = 10

#: Of each version.
CONFIG: Mapping[str, Any] = {
    "peft_type": "P_TUNING",
    "task_type": "CAUSAL_LM",
    "num_virtual_tokens": 10,
    "token_dim": 576,
    "template": "{country}:{prompt:10} {continent}",
    "answer": "continent",
    "metric": "accuracy",
    "candidates": ["Africa", "Antarctica", "Asia", "Europe", "North America", "Oceania"],
    "ends_answer": False,
    "max_answer_tokens": 2,
    "encoder": {"type": "mlp", "hidden_size": 128, "num_layers": 2, "dropout": 0.0, "init": None},
    "training": {"steps": 80, "batch_size": 8, "learning_rate": 0.01, "optimizer": "adamw"},
}
_ARTIFACTS = {
    name: {"digest": f"{number:064x}", "num_bytes": 23_128}
    for number, name in enumerate(("encoder", "prompt_embeddings", "curve"))
}
_LINEAGE = {
    "base_fingerprint": "f" * 64,
    "datasets": dict.fromkeys(("train", "eval"), "d" * 64),
    "num_rows": {"train": 124, "eval": 123},
    "spec_digest": "e" * 64,
    "seed": 0,
    "code_version": "0.1.0+0123456789ab",
    "job": None,
    "parent": None,
}


@dataclass(frozen=True)
class Scale:
    """How many versions over how many tasks. Row i is version i / tasks + 1 of task i % tasks."""

    versions: int
    tasks: int

    @property
    def per_task(self) -> int:
        return self.versions // self.tasks


#: What the two databases write differently.
DIALECTS: Mapping[str, Mapping[str, str]] = {
    "sqlite": {
        "rows": "(WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n "
        "WHERE i + 1 < {}) SELECT i FROM n)",
        "hex": "printf('%064x', {})",
        "time": "strftime('%Y-%m-%d %H:%M:%f000', 1700000000 + {} * 30, 'unixepoch')",
        "json": "{}",
    },
    "postgresql": {
        "rows": "(SELECT i FROM generate_series(CAST(0 AS bigint), {} - 1) AS i) AS r",
        "hex": "lpad(to_hex({}), 64, '0')",
        "time": "to_timestamp(1700000000 + {} * 30)",
        "json": "CAST({} AS json)",
    },
}
_TUTTI = (
    "INSERT INTO tasks (name, last_version) SELECT 'task-' || i, {per_task} FROM {all_tasks}",
    """
    INSERT INTO base_models (name, fingerprint, source, source_digest, files, architecture,
        num_parameters, hidden_size, max_length, created_at)
    SELECT 'base-' || i, {hex_i}, 's', 'd', {json_empty}, 'Llama', 1, 576, 2048, {time_0}
    FROM {all_bases}
    """,
    """
    INSERT INTO prompt_versions (id, task, number, digest, config, metrics, artifacts, lineage,
        base_fingerprint, job_id, created_at)
    SELECT i + 1, {task}, {number}, {hex_i}, {json_config}, {json_metrics}, {json_artifacts},
        {json_lineage}, {hex_base}, substr({hex_i}, 33), {time_i}
    FROM {all_versions}
    """,
    """
    INSERT INTO aliases (task, alias, version_id, generation, updated_at)
    SELECT 'task-' || i, 'production', {versions} - {tasks} + 1 + i, {num_moves}, {time_0}
    FROM {all_tasks}
    """,
)
_METRIC = """
    INSERT INTO version_metrics (name, version_id, value)
    SELECT '{metric}', i + 1, {value} FROM {all_versions}
"""
_MOVE = """
    INSERT INTO promotions (task, alias, generation, from_version, to_version, actor, reason,
        promoted_at)
    SELECT 'task-' || i, 'production', {move}, {before}, {after}, 'ann', 'better', {time_0}
    FROM {all_tasks}
"""
_MLFLOW = (
    """
    INSERT INTO registered_models (workspace, name, creation_time, last_updated_time)
    SELECT 'default', 'task-' || i, 1700000000000, 1700000000000 FROM {all_tasks}
    """,
    """
    INSERT INTO model_versions (workspace, name, version, creation_time, last_updated_time,
        current_stage, source, status)
    SELECT 'default', {task}, {number}, 1700000000000 + i * 30000, 1700000000000 + i * 30000,
        'None', 'mlflow-artifacts:/1', 'READY'
    FROM {all_versions}
    """,
    """
    INSERT INTO registered_model_aliases (workspace, name, alias, version)
    SELECT 'default', 'task-' || i, 'production', {per_task} FROM {all_tasks}
    """,
)
_MLFLOW_TAG = """
    INSERT INTO model_version_tags (workspace, name, version, key, value)
    SELECT 'default', {task}, {number}, '{key}', {value} FROM {all_versions}
"""
_VALUES = {
    "accuracy": "((i * 7919 % 1000) / 1000.0)",
    "loss": "((i * 104729 % 1000) / 250.0)",
    "held_out_rows": "123.0",
    "seconds": "31.5",
}
_BASE = f"(i % {{tasks}} % {NUM_BASES})"


def fill_registry(url: str, scale: Scale) -> None:
    """Fill the empty, migrated registry at `url`."""
    with _connect(url) as connection:
        words = _words(connection, scale)
        for statement in _TUTTI:
            _execute(connection, statement, words)
        for metric, value in _VALUES.items():
            _execute(connection, _METRIC, {**words, "metric": metric, "value": value})
        for move in range(1, words["num_moves"] + 1):
            after = scale.per_task - words["num_moves"] + move
            numbers = {"move": move, "before": after - 1 or "NULL", "after": after}
            _execute(connection, _MOVE, {**words, **numbers})
        if connection.dialect.name == "postgresql":
            for table in ("prompt_versions", "base_models"):
                newest = f"(SELECT max(id) FROM {table})"
                sequence = f"pg_get_serial_sequence('{table}', 'id')"
                connection.execute(text(f"SELECT setval({sequence}, {newest})"))
    _analyze(url)


def fill_mlflow(url: str, scale: Scale) -> None:
    """Fill MLflow's empty, migrated registry with the same versions; what they carry are tags."""
    tags = {"base": "'base-' || {base}", "accuracy": "CAST(i * 7919 % 1000 AS text)"}
    with _connect(url) as connection:
        words = _words(connection, scale)
        for statement in _MLFLOW:
            _execute(connection, statement, words)
        for key, value in tags.items():
            of_tag = {"key": key, "value": value.format_map(words)}
            _execute(connection, _MLFLOW_TAG, {**words, **of_tag})
    _analyze(url)


@contextmanager
def _connect(url: str) -> Iterator[Connection]:
    engine = create_engine(url)
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def _words(connection: Connection, scale: Scale) -> dict[str, Any]:
    """What the statements' placeholders stand for; row i is counted from 0."""
    sql = DIALECTS[connection.dialect.name]
    hex_, time, json_ = (sql[name].format for name in ("hex", "time", "json"))
    base = _BASE.format(tasks=scale.tasks)
    pairs = (f"'\"{name}\": ' || {value}" for name, value in _VALUES.items())
    return {
        **vars(scale),
        "per_task": scale.per_task,
        "num_moves": min(NUM_PROMOTIONS, scale.per_task),
        "task": f"'task-' || (i % {scale.tasks})",
        "number": f"(i / {scale.tasks} + 1)",
        "base": base,
        "hex_i": hex_("i"),
        "hex_base": hex_(base),
        "time_0": time("0"),
        "time_i": time("i"),
        **{f"json_{name}": json_(f":{name}") for name in ("empty", "config", "artifacts")},
        "json_metrics": json_("'{' || " + " || ', ' || ".join(pairs) + " || '}'"),
        "json_lineage": json_(f"replace(:lineage, 'base-name', 'base-' || {base})"),
        "all_tasks": sql["rows"].format(scale.tasks),
        "all_bases": sql["rows"].format(NUM_BASES),
        "all_versions": sql["rows"].format(scale.versions),
    }


def _execute(connection: Connection, statement: str, words: Mapping[str, Any]) -> None:
    filled = statement.format_map(words)
    texts = {
        "empty": "{}",
        "config": json.dumps(CONFIG),
        "artifacts": json.dumps(_ARTIFACTS),
        "lineage": json.dumps({"base": "base-name", **_LINEAGE}),
    }
    used = {name: value for name, value in texts.items() if f":{name}" in filled}
    connection.execute(text(filled), used)


def _analyze(url: str) -> None:
    """What PostgreSQL's autovacuum would have done by now; SQLite has nothing of the kind."""
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    if engine.dialect.name == "postgresql":
        with engine.connect() as connection:
            connection.execute(text("VACUUM ANALYZE"))
    engine.dispose()
