"""Mutations that the suite must notice: each names one place, what stands there, what would be wrong, and who tells.

`make planted` applies each in a copy of the tree and runs only the tests named with it; a mutation that they let pass is
a missing test. `test_planted.py` checks that every place is still there.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bug:
    """In `file` (below src/headrace), `old` becomes `new`; then at least one of `tests` must fail."""

    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


LOG = "tests/conformance/test_log.py::TestSqliteLog::"
CRASH = "tests/integration/test_log_crash.py::"
PROCESSES = "tests/integration/test_log_processes.py::"
SIM = "tests/sim/test_simulation.py::test_crashes_lose_nothing_and_repeat_nothing[0]"
WINDOW = "tests/unit/test_window.py::"
INGEST = "tests/unit/test_ingest.py::"
HTTP = "tests/integration/test_http_ingest.py::"
DELTA = "tests/integration/test_delta.py::"
STORE = "tests/unit/test_store.py::"
DELIVER = "tests/unit/test_deliver.py::"
CHECKPOINT = "tests/unit/test_checkpoint.py::"
RECOVERY = "tests/unit/test_recovery.py::"
CONFIG = "tests/unit/test_config.py::"

BUGS: tuple[Bug, ...] = (
    # -- log -------------------------------------------------------------------------------------------
    Bug(
        "no fsync",
        "log/database.py", 'connection.execute("PRAGMA synchronous=FULL")', 'connection.execute("PRAGMA synchronous=OFF")',
        (CRASH + "test_every_connection_waits_for_the_disk",),
    ),
    Bug(
        "a replaced worker may go on",
        "log/plan.py", "refusal = fence(last, epoch.number, pipeline, worker)", 'refusal = ""',
        (LOG + "test_epochs_are_fenced",),
    ),
    Bug(
        "the cursor is not in the transaction",
        "log/plan.py", "self._cursors.update(draft.cursors)", "pass",
        (LOG + "test_cursor_comes_with_the_rows",),
    ),
    Bug(
        "positions are not in the transaction",
        "log/plan.py", "self._positions.update(draft.positions)", "pass",
        (LOG + "test_everything_is_there_after_reopening",),
    ),
    Bug(
        "retention deletes what the slowest reader still wants",
        "log/retention.py", "SELECT partition, min(next)", "SELECT partition, max(next)",
        (LOG + "test_retention_by_age_honours_readers",),
    ),
    Bug(
        "an emptied partition uses its offsets again",
        "log/retention.py", "[(stored.id, partition, end) for", "[(stored.id, partition, 0) for",
        (LOG + "test_retention_by_age_honours_readers", LOG + "test_any_history_reads_like_a_list"),
    ),
    Bug(
        "changed bytes are not noticed",
        "log/frame.py", "if zlib.crc32(data) != crc:", "if False:",
        (PROCESSES + "test_changed_bytes_are_told_with_their_place",),
    ),
    Bug(
        "the cache gives rows from the start of a batch",
        "log/tail.py", "skip = offset - bases[at]", "skip = 0",
        (LOG + "test_any_history_reads_like_a_list",),
    ),
    Bug(
        "appends of another process are not seen",
        "log/commit.py", "if version != self._data_version:", "if False:",
        (PROCESSES + "test_several_processes_append_and_every_row_is_there_once",),
    ),
    Bug(
        "a refused draft is told that it was kept",
        "log/commit.py", "except HeadraceError as error:\n                        draft.error = error",
        "except HeadraceError:\n                        pass",
        (LOG + "test_mistakes_are_told_and_change_nothing",),
    ),
    Bug(
        "a read stops one row short",
        "log/sqlite.py", "rows.slice(offset - base, span.end - offset)", "rows.slice(offset - base, span.end - offset - 1)",
        ("tests/conformance/test_log.py::TestSqliteLogWithoutTail::test_any_history_reads_like_a_list",),
    ),
    # -- engine ----------------------------------------------------------------------------------------
    Bug(
        "the watermark goes back",
        "engine/watermark.py", "self.current_us = max(self.current_us, reached - self.delay.us)",
        "self.current_us = reached - self.delay.us",
        ("tests/unit/test_watermark.py::test_it_never_goes_back",),
    ),
    Bug(
        "the fastest input moves the watermark",
        "engine/watermark.py", "reached = min(", "reached = max(",
        ("tests/unit/test_watermark.py::test_it_is_the_minimum_over_inputs_less_the_delay",),
    ),
    Bug(
        "an epoch is not recorded",
        "engine/local.py", "transaction.epoch(self.pipeline.name, self._worker, epoch, totals)", "pass",
        (SIM,),
    ),
    Bug(
        "an epoch's positions stay where they were",
        "engine/local.py", "transaction.position(self._reader, *source, span.end)",
        "transaction.position(self._reader, *source, span.start)",
        (SIM,),
    ),
    Bug(
        "recovery emits its rows once more",
        "engine/local.py", "        self._process(rows, epoch.watermark_us)\n        self._watermark",
        "        with self._log.transaction() as again:\n"
        "            self._process(rows, epoch.watermark_us).write(again, self.pipeline, self._log.topics(), epoch.now_us)\n"
        "        self._watermark",
        (SIM,),
    ),
    Bug(
        "recovery skips the recorded epochs",
        "engine/local.py", "        for epoch in epochs:\n            self._replay(epoch, now)", "        epochs = epochs[:0]",
        (SIM,),
    ),
    Bug(
        "a checkpoint says that it is of the epoch before",
        "engine/local.py", "            epoch=self._epoch,\n            workers", "            epoch=self._epoch - 1,\n            workers",
        (SIM,),
    ),
    Bug(
        "a checkpoint forgets the watermark",
        "engine/local.py", "watermark_us=self._watermark.current_us,", "watermark_us=-(2**62),",
        (RECOVERY + "test_the_watermark_goes_on_from_a_checkpoint",),
    ),
    Bug(
        "a checkpoint is written from operators that are ahead of the log",
        "engine/local.py", 'if opened and self.state.state != "failed" and', "if opened and",
        (RECOVERY + "test_a_stop_while_the_disk_is_full_keeps_no_state_that_is_ahead",),
    ),
    Bug(
        "epochs go that only the newest checkpoint covers",
        "engine/local.py", "self._worker, before.epoch + 1)", "self._worker, checkpoint.epoch + 1)",
        (RECOVERY + "test_a_damaged_checkpoint_leads_to_the_same_rows",),
    ),
    Bug(
        "a restart reads from the start of the log",
        "engine/local.py", "max(committed.get((name, partition), start), start)", "start",
        (SIM,),
    ),
    Bug(
        "only one checkpoint is kept",
        "engine/checkpoint.py", "_KEEP = 2", "_KEEP = 1",
        (CHECKPOINT + "test_only_the_two_newest_are_kept",),
    ),
    Bug(
        "recovery takes the older checkpoint",
        "engine/checkpoint.py", "for epoch in reversed(self._epochs(folder)):", "for epoch in self._epochs(folder):",
        (CHECKPOINT + "test_the_newest_is_taken_and_newer_is_by_number",),
    ),
    Bug(
        "rows put aside count as filtered too",
        "engine/chain.py", "filtered += before - rows.num_rows - aside", "filtered += before - rows.num_rows",
        (RECOVERY + "test_every_row_of_an_epoch_is_counted_once",),
    ),
    Bug(
        "a step without state gets the state of another",
        "engine/chain.py", "if print_ == self.fingerprints[number]:", "if True:",
        (RECOVERY + "test_a_changed_step_begins_without_the_state_of_the_one_before",),
    ),
    Bug(
        "a column not seen yet is a double for good",
        "analysis/columns.py", "metadata=UNSEEN if self.unseen else None", "metadata=None",
        ("tests/unit/test_unseen.py",),
    ),
    # -- windows ---------------------------------------------------------------------------------------
    Bug(
        "a row that is just late reopens its window",
        "analysis/panes.py", "late: Bools | None = pane <= clip_us(", "late: Bools | None = pane < clip_us(",
        (WINDOW + "test_late_row_never_reopens_a_window",),
    ),
    Bug(
        "windows before 1970 are aligned towards 1970",
        "analysis/panes.py", "pane = times // self.plan.hop_us\n        late",
        "pane = np.trunc(times / self.plan.hop_us).astype(np.int64)\n        late",
        (WINDOW + "test_windows_are_aligned_to_1970_also_before_it",),
    ),
    Bug(
        "the watermark before 1970 is rounded towards 1970",
        "analysis/panes.py", "return (watermark_us - self.plan.lateness_us) // self.plan.hop_us - 1",
        "return int((watermark_us - self.plan.lateness_us) / self.plan.hop_us) - 1",
        (WINDOW + "test_a_window_before_1970_stays_open_until_its_end",),
    ),
    Bug(
        "a window comes out one hop late",
        "analysis/panes.py", "done = groups[pane <= closing]\n", "done = groups[pane < closing]\n",
        (WINDOW + "test_a_window_comes_out_once_when_the_watermark_reaches_its_end",),
    ),
    Bug(
        "lateness is judged by the watermark after the epoch",
        "steps/window.py", "self._take(rows, before)", "self._take(rows, watermark_us)",
        (WINDOW + "test_lateness_is_judged_by_the_watermark_before_the_epoch",),
    ),
    Bug(
        "the workers that were behind lose rows after a rescale",
        "analysis/windows.py", "watermark = min(*watermarks, int(own.min())) if watermarks else int(own.min())",
        "watermark = max(*watermarks, int(own.max())) if watermarks else int(own.max())",
        ("tests/unit/test_window_laws.py::test_workers_with_different_watermarks_put_together_lose_nothing_and_repeat_nothing",),
    ),
    Bug(
        "sessions exactly a gap apart are one",
        "analysis/sessions.py", "begins[1:] |= start[1:] - reached[:-1] >= gap_us", "begins[1:] |= start[1:] - reached[:-1] > gap_us",
        (WINDOW + "test_sessions_end_a_gap_after_their_last_row_and_merge_over_epochs", "tests/unit/test_window_laws.py"),
    ),
    # -- in --------------------------------------------------------------------------------------------
    Bug(
        "a source acknowledges before the append",
        "ingest.py", "for arrival in arrivals:", "for arrival in list(arrivals):",
        (INGEST + "test_the_code_after_a_yield_does_not_run_when_the_append_fails",),
    ),
    Bug(
        "rejects are dropped",
        "ingest.py", "                if intake.rejects:\n", "                if False:\n",
        (INGEST + "test_a_body_is_stored_with_its_rejects_in_one_go",),
    ),
    Bug(
        "a source's cursor is not stored with its rows",
        "ingest.py", "                if intake.writer:\n", "                if False:\n",
        (INGEST + "test_a_source_goes_on_from_its_durable_cursor_after_an_outage", SIM),
    ),
    Bug(
        "an idempotency key takes any body",
        "push.py", "if before[0] != digest:", "if False:",
        (HTTP + "test_a_key_seen_before_stores_nothing_twice", INGEST),
    ),
    Bug(
        "idempotency keys are forgotten at a restart",
        "push.py", "        self._load_keys()\n", "",
        (INGEST + "test_the_same_key_and_body_is_stored_once_also_after_a_restart",),
    ),
    Bug(
        "a reject among gathered events goes to the wrong sender",
        "serve/gather.py", "verdicts[reject.row] = verdict", "verdicts[0] = verdict",
        (HTTP + "test_many_senders_of_single_events_each_get_their_own_verdict",),
    ),
    Bug(
        "a bad line of JSON vanishes",
        "formats/json_body.py", "self.rejects.append(reject(raw, refused, place))", "pass",
        (
            "tests/unit/test_formats_json.py::test_a_bad_row_is_refused_alone_with_its_bytes",
            HTTP + "test_accepted_and_rejected_add_up_to_what_was_sent",
        ),
    ),
    Bug(
        "a time far in the future is taken",
        "formats/body.py", "limits = Limits(max_field_bytes, max_depth, now_us + max_future.us)",
        "limits = Limits(max_field_bytes, max_depth, 2**62)",
        ("tests/unit/test_formats_json.py",),
    ),
    # -- out -------------------------------------------------------------------------------------------
    Bug(
        "a sink's position is remembered before it has written",
        "deliver.py", "offsets = np.arange(span.start, span.end)\n",
        "offsets = np.arange(span.start, span.end)\n"
        "        with self._log.transaction() as early:\n"
        "            early.position(_reader(state), state.topic, partition, span.end)\n",
        (DELIVER + "test_a_target_without_a_memory_gets_the_rows_of_a_failed_write_after_a_restart",),
    ),
    Bug(
        "a refused row is buried again with every retry",
        "deliver.py", "if (partition, offset) not in state.buried]", "]",
        (DELIVER + "test_a_refused_row_is_a_dead_letter_and_the_others_arrive_once",),
    ),
    Bug(
        "refused rows vanish",
        "deliver.py", "self._bury(state, partition, offsets[refused].tolist(), rejects)", "pass",
        (DELIVER + "test_a_refused_row_is_a_dead_letter_and_the_others_arrive_once",),
    ),
    Bug(
        "the target's own position is not asked for",
        "deliver.py", "writer.committed(partition) if sink.exactly_once else (remembered or 0)", "remembered or 0",
        (DELIVER, SIM),
    ),
    Bug(
        "a target that belongs to other data is written to",
        "deliver.py", "if position > extent.end:", "if False:",
        (DELIVER + "test_a_target_that_is_ahead_of_the_log_is_refused",),
    ),
    Bug(
        "Delta: a stale version is accepted",
        "sinks/delta.py", "        if done >= end:\n            return\n", "",
        (DELTA + "test_an_old_span_never_moves_the_position_back",),
    ),
    Bug(
        "Delta: of a span that is partly in, all is written",
        "sinks/delta.py", "skipped = max(0, rows.num_rows - (end - done))", "skipped = 0",
        (DELTA + "test_rows_written_again_are_there_once",),
    ),
    Bug(
        "Delta: the position is not in the commit",
        "sinks/delta.py", "app_transactions=[Transaction(app_id(self._name, self._topic.name, partition), end)],",
        "app_transactions=[],",
        (DELTA + "test_rows_and_position_arrive_together_and_survive_reopening",),
    ),
    Bug(
        "Delta: a fraction is cut off",
        "sinks/delta.py", "if widened(have, merged):", "if False:",
        (DELTA + "test_a_number_that_turns_out_to_have_fractions_keeps_them",),
    ),
    # -- queries and serving -----------------------------------------------------------------------------
    Bug(
        "the tail of the log is read before the table's snapshot",
        "snapshot.py", "        files = self._files(name, topic) if name in self._refs else None\n",
        "        before = self._files(name, topic) if name in self._refs else None\n"
        "        early = topic and self._tail(topic, lake_schema(topic.schema), before.positions if before else {})\n"
        "        import time; time.sleep(0.02); self._tail = lambda *_: early  # type: ignore\n"
        "        files = self._files(name, topic) if name in self._refs else None\n"
        "        del self._known\n"
        "        self._known = {}\n",
        (STORE + "test_no_row_twice_or_missing_while_the_sink_commits",),
    ),
    Bug(
        "rows of the log are there twice",
        "snapshot.py", "start = min(max(positions.get(partition, 0), extent.start), extent.end)", "start = extent.start",
        (STORE + "test_a_table_is_the_delta_snapshot_and_the_tail_of_the_log",),
    ),
    Bug(
        "an answer that was cut off doesn't say so",
        "store.py", "LIMIT {max_rows + 1}", "LIMIT {max_rows}",
        (STORE + "test_rows_time_memory_and_size_of_an_answer_are_bounded",),
    ),
    Bug(
        "a query may read files",
        "store.py", 'base.execute("SET enable_external_access = false")', "pass",
        (STORE + "test_duckdb_itself_is_closed_even_past_the_first_fence",),
    ),
    Bug(
        "equal rows are lost between pages",
        "store.py", "(before.at_us, before.hash) == (at_us, hash_):", "False:",
        (STORE + "test_pages_pass_through_more_equal_rows_than_two_pages_hold",),
    ),
    Bug(
        "a body has no limit while it comes",
        "serve/ingest_route.py", "if size > max_body:", "if False:",
        (HTTP + "test_a_sender_who_has_sent_too_much_gets_to_see_the_answer",),
    ),
    Bug(
        "the bodies in memory have no limit together",
        "serve/ingest_route.py", "if self._route.in_flight + len(part) > max_in_flight:", "if False:",
        (HTTP + "test_bytes_in_flight_are_bounded",),
    ),
    Bug(
        "bytes of senders who left are counted for ever",
        "serve/ingest_route.py", "self._route.in_flight -= self.size", "pass",
        (HTTP + "test_a_client_that_leaves_in_the_middle_leaves_nothing_behind", HTTP + "test_bytes_in_flight_are_bounded"),
    ),
    # -- configuration and the rest ------------------------------------------------------------------------
    Bug(
        "the environment beats the flag",
        "config_reader.py", 'host = host or env.get("HEADRACE_HOST")', 'host = env.get("HEADRACE_HOST") or host',
        (CONFIG + "test_flag_beats_environment_beats_file",),
    ),
    Bug(
        "the .env file beats the environment",
        "config.py", "env = {**_beside(path), **env}", "env = {**env, **_beside(path)}",
        (CONFIG + "test_an_env_file_beside_the_config_is_read_and_the_environment_wins",),
    ),
    Bug(
        "rows of one key may go to different workers",
        "plan.py", "if not topic.key or not set(topic.key) <= set(wanted):", "if False:",
        (CONFIG + "test_state_by_key_needs_all_rows_of_the_key_in_one_partition",),
    ),
    Bug(
        "the partition of a key changes",
        "model.py", "total = total * np.uint64(31) + hashes[codes]", "total = total * np.uint64(33) + hashes[codes] + np.uint64(1)",
        ("tests/unit/test_model.py::test_the_partition_of_a_key_never_changes",),
    ),
    Bug(
        "the note beside the data can be read by all",
        "commands/place.py", "path.chmod(0o600)", "path.chmod(0o644)",
        ("tests/unit/test_place.py",),
    ),
    Bug(
        "of equal keys in a table the first row counts",
        "steps/enrich.py", "self._row_of[total[rows]] = rows", "self._row_of[total[rows[::-1]]] = rows[::-1]",
        ("tests/unit/test_enrich.py::test_the_last_row_of_a_key_counts_and_null_matches_nothing",),
    ),
)  # fmt: skip
