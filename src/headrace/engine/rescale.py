"""Give a pipeline's state to another number of workers.

Each old worker is recovered (its last checkpoint, then its recorded epochs), the states are put together, and each row
of state goes to the worker that owns the partition of its key. State is rows with the key first, so that is a filter.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import structlog

from headrace.clock import Clock
from headrace.engine.checkpoint import Checkpoint, CheckpointStore
from headrace.engine.local import Worker
from headrace.errors import PlanError
from headrace.log import Log
from headrace.model import partition_of
from headrace.pipeline import Pipeline

logger = structlog.get_logger("headrace.engine")


def rescale(
    pipeline: Pipeline, log: Log, checkpoints: CheckpointStore, *, clock: Clock, workers: int
) -> bool:
    """Make the checkpoints of `pipeline` fit `workers` workers; True when something had to be done.

    No worker of the pipeline may be running. Raises PlanError when the state can't be divided by the topic's key.
    """
    checkpoints.settle(pipeline.name)
    old = {number: checkpoints.load(pipeline.name, number) for number in checkpoints.workers(pipeline.name)}
    kept = {number: checkpoint for number, checkpoint in old.items() if checkpoint is not None}
    if not kept or all(checkpoint.workers == workers for checkpoint in kept.values()):
        return False
    recovered = []
    for number, checkpoint in kept.items():
        worker = Worker(
            pipeline, log, clock=clock, checkpoints=checkpoints, worker=number, workers=checkpoint.workers
        )
        worker.open()
        recovered.append(worker.state_after())
    # The worker furthest behind comes first: its watermark is the one that no key's rows are late for.
    recovered.sort(key=lambda checkpoint: checkpoint.watermark_us)
    topic = log.topics()[pipeline.topics[0]]
    last = {
        number: epoch.number for (name, number), (epoch, _) in log.counts().items() if name == pipeline.name
    }
    fresh = {}
    for number in range(workers):
        owned = {p for checkpoint in recovered for p in checkpoint.partitions if p % workers == number}
        fresh[number] = Checkpoint(
            epoch=last.get(number, 0),
            workers=workers,
            partitions=sorted(owned),
            positions={k: v for c in recovered for k, v in c.positions.items() if k[1] in owned},
            newest_us={k: v for c in recovered for k, v in c.newest_us.items() if k[1] in owned},
            watermark_us=min(checkpoint.watermark_us for checkpoint in recovered),
            steps=recovered[0].steps,
            states=[
                _owned(
                    [c.states[i] for c in recovered],
                    topic.key,
                    topic.partitions,
                    workers,
                    number,
                    pipeline.name,
                )
                for i in range(len(recovered[0].states))
            ],
        )
    checkpoints.replace(pipeline.name, fresh)
    logger.info("pipeline state was divided anew", pipeline=pipeline.name, before=len(kept), after=workers)
    return True


def _owned(
    states: Sequence[pa.Table], key: Sequence[str], partitions: int, workers: int, number: int, pipeline: str
) -> pa.Table:
    """The rows of all `states` whose key lies in a partition of worker `number`."""
    filled = [state for state in states if state.num_columns]
    if not filled:
        return pa.table({})
    table = pa.concat_tables(filled, promote_options="default").replace_schema_metadata(
        filled[0].schema.metadata
    )
    if partitions == 1 or not table.num_rows:
        return table if number == 0 else table.slice(0, 0)
    missing = [name for name in key if name not in table.column_names]
    if missing or not key:
        raise PlanError(
            f"pipeline {pipeline}: its state has no column {missing[0] if missing else 'of a key'!r} to be divided by; "
            "run it with as many workers as before"
        )
    rows = table.combine_chunks().to_batches()[0]
    mine = partition_of(rows, key, partitions) % workers == number
    return table.filter(pa.array(np.asarray(mine)))
